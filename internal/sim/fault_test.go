package sim

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func smtpFaults(clock func() time.Time) *Faults {
	return newFaults(clock, checkSMTPFault, StepMail, StepDot)
}

func TestFaultTimesForAndOrder(t *testing.T) {
	at := time.Now()
	f := smtpFaults(func() time.Time { return at })
	setFaults(t, f,
		Fault{Step: StepMail, Do: Drop, Times: 2},
		Fault{Step: StepMail, Do: Hang, For: time.Minute},
		Fault{Step: StepMail, Do: Reset, To: "x"})
	if err := f.AddFault(Fault{Step: StepDot}); err != nil {
		t.Fatal(err)
	}
	want := func(do Action, ev Event) {
		t.Helper()
		if x, ok := f.take(ev); x.Do != do || ok != (do != "") {
			t.Fatalf("took %q, want %q", x.Do, do)
		}
	}
	mail := Event{Step: StepMail, To: []string{"a", "bxc"}}
	want(Drop, mail)
	want(Drop, mail)
	want(Hang, mail)
	at = at.Add(59 * time.Second)
	want(Hang, mail)
	if list := f.ListFaults(); len(list) != 3 || list[0].For != time.Second || list[2].Do != Slow {
		t.Fatalf("list %+v", list)
	}
	at = at.Add(time.Second)
	want(Reset, mail)
	want("", Event{Step: StepMail, To: []string{"a"}})
	want(Slow, Event{Step: StepDot})
	f.ClearFaults()
	want("", mail)
}

func TestFaultProbability(t *testing.T) {
	f := smtpFaults(time.Now)
	setFaults(t, f, Fault{Step: StepMail, Probability: 0.5})
	n := 0
	for range 1000 {
		if _, ok := f.take(Event{Step: StepMail}); ok {
			n++
		}
	}
	if n < 350 || n > 650 {
		t.Fatalf("%d of 1000 at one half", n)
	}
}

// Times is exact, however many ask at once.
func TestFaultTimesConcurrently(t *testing.T) {
	f := smtpFaults(time.Now)
	setFaults(t, f, Fault{Step: StepMail, Times: 100})
	var mu sync.Mutex
	var wg sync.WaitGroup
	n := 0
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if _, ok := f.take(Event{Step: StepMail}); ok {
					mu.Lock()
					n++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if n != 100 {
		t.Fatalf("acted %d times, want 100", n)
	}
}

func TestFaultIsValidated(t *testing.T) {
	f := smtpFaults(time.Now)
	setFaults(t, f, Fault{Step: StepMail})
	http := newFaults(time.Now, checkHTTPFault(func(code string) bool { return code == "KNOWN" }), StepConnect, StepBody)
	for _, tc := range []struct {
		f     *Faults
		fault Fault
		want  string
	}{
		{f, Fault{}, "step"},
		{f, Fault{Step: StepBody}, "step"},
		{f, Fault{Step: StepMail, Do: "explode"}, "do"},
		{f, Fault{Step: StepMail, Do: Answer}, "code"},
		{f, Fault{Step: StepMail, Do: Answer, Code: 42}, "code"},
		{f, Fault{Step: StepMail, Do: Answer, Code: 450, Error: "a\nb"}, "error"},
		{f, Fault{Step: StepMail, Do: Answer, Code: 450, RetryAfter: 1}, "retry-after"},
		{f, Fault{Step: StepMail, Probability: 1.1}, "probability"},
		{f, Fault{Step: StepMail, Times: -1}, "negative"},
		{http, Fault{Step: StepBody, Do: Answer, Error: "OTHER"}, "documented"},
		{http, Fault{Step: StepBody, Do: Answer, Code: 200}, "400"},
		{http, Fault{Step: StepConnect, Do: Answer, Code: 503}, "connect"},
		{http, Fault{Step: StepConnect, Do: Partial}, "connect"},
	} {
		if err := tc.f.SetFaults(Fault{Step: tc.f.steps[0]}, tc.fault); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want one about %s", tc.fault, err, tc.want)
		}
	}
	if err := http.SetFaults(Fault{Step: StepBody, Do: Answer, Error: "KNOWN"}); err != nil {
		t.Error(err)
	}
	if n := len(f.ListFaults()); n != 1 {
		t.Fatalf("%d faults after refused changes, want the 1 from before", n)
	}
}

func TestFaultJSON(t *testing.T) {
	in := Fault{
		Step: StepDot, Do: Answer, To: "a", Subject: "b", Probability: 0.25, Times: 3,
		For: time.Minute, Delay: 1500 * time.Millisecond, Code: 451, Error: "busy", RetryAfter: time.Second,
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Fault
	if err := json.Unmarshal(b, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Fatalf("%s became %+v, %v", b, out, err)
	}
	if b, _ := json.Marshal(Fault{Step: StepDot, Do: Drop}); string(b) != `{"step":"dot","do":"drop"}` {
		t.Fatalf("got %s", b)
	}
	for _, bad := range []string{`{"stop":"dot"}`, `{"delay":"1"}`, `{"times":"x"}`} {
		if err := json.Unmarshal([]byte(bad), &out); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
