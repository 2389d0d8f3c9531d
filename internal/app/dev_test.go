//go:build linux

package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/app"
	"github.com/stormpost/stormpost/internal/devstack/teststack"
)

// TestDev runs `stormpost dev` as a person does: sends, kills it under load,
// starts it again in the same folder, and stops it.
func TestDev(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and runs PostgreSQL")
	}
	d := newDevRun(t)
	d.start()
	d.submit("first-email", false)
	d.submit("first-push", true)
	d.await("both are in the inbox", func() bool {
		in := d.inbox()
		return in["first-email"] == 1 && in["first-push"] == 1
	})
	d.pushes()
	before := d.addr
	d.second()

	accepted := d.killUnderLoad()
	if _, err := os.Stat(filepath.Join(d.dir, "dev.json")); err != nil {
		t.Errorf("a killed process can't have removed dev.json: %v", err)
	}
	d.start()
	if d.addr.APIKey != before.APIKey || d.addr.OperatorKey != before.OperatorKey {
		t.Error("the keys changed with the restart")
	}
	if d.addr.PID == before.PID {
		t.Error("dev.json is that of the killed process")
	}
	// What had no answer is repeated under its key, and answered now.
	for name, push := range accepted.unanswered() {
		d.submit(name, push)
	}
	d.account(accepted)
	d.stop()
	d.startElsewhere(accepted)
	d.stop()
}

// devRun is a data folder and the process that runs in it.
type devRun struct {
	t      *testing.T
	dir    string
	binary string
	races  string // in its environment
	cmd    *exec.Cmd
	addr   app.DevAddresses
	out    lines
	ended  chan struct{}
}

func newDevRun(t *testing.T) *devRun {
	t.Helper()
	built := t.TempDir()
	binary, err := teststack.Build(built, "")
	if err != nil {
		t.Fatal(err)
	}
	d := &devRun{t: t, dir: t.TempDir(), binary: binary, races: teststack.RaceEnv(built)}
	t.Cleanup(func() {
		d.sweep()
		if races := teststack.Races(built); races != "" {
			t.Errorf("dev races:\n%s", races)
		}
	})
	return d
}

// lines is what a process printed.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, s)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text[max(0, len(l.text)-30):], "\n")
}

// start starts the process, and waits until it says that it is ready.
func (d *devRun) start(more ...string) {
	d.t.Helper()
	d.cmd = exec.Command(d.binary, append([]string{"dev", "--data", d.dir, "--listen", "127.0.0.1:0"}, more...)...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "STORMPOST_") && !strings.HasPrefix(e, "OTEL_") {
			d.cmd.Env = append(d.cmd.Env, e)
		}
	}
	d.cmd.Env = append(d.cmd.Env, d.races)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	d.cmd.Stderr = d.cmd.Stdout
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	d.ended = ended
	go func(cmd *exec.Cmd) {
		defer close(ended)
		once := sync.OnceFunc(func() { close(ready) })
		for scan := bufio.NewScanner(out); scan.Scan(); {
			d.out.add(scan.Text())
			if scan.Text() == "Stormpost is ready." {
				once()
			}
		}
		_ = cmd.Wait()
	}(d.cmd)
	select {
	case <-ready:
	case <-ended:
		d.t.Fatalf("dev ended:\n%s", &d.out)
	case <-time.After(time.Minute):
		d.t.Fatalf("dev isn't ready:\n%s", &d.out)
	}
	b, err := os.ReadFile(filepath.Join(d.dir, "dev.json"))
	if err == nil {
		err = json.Unmarshal(b, &d.addr)
	}
	if err != nil || d.addr.PID != d.cmd.Process.Pid {
		d.t.Fatalf("dev.json of %d says %s (%v)", d.cmd.Process.Pid, b, err)
	}
	var names map[string]any
	if err := json.Unmarshal(b, &names); err != nil {
		d.t.Fatal(err)
	}
	for _, name := range []string{"api", "api_key", "operator_key", "inbox", "metrics", "dsn", "brokers", "pid"} { // scripts rely on them
		if names[name] == nil {
			d.t.Errorf("dev.json has no %q: %s", name, b)
		}
	}
}

// second starts another process in the folder: it is refused, and the running
// one's dev.json stays.
func (d *devRun) second() {
	d.t.Helper()
	for _, stores := range [][]string{nil, {"--dsn", d.addr.DSN, "--brokers", d.addr.Brokers[0]}} {
		ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
		out, err := exec.CommandContext(ctx, d.binary, append([]string{"dev", "--data", d.dir, "--listen", "127.0.0.1:0"}, stores...)...).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), "in use") {
			d.t.Errorf("a second dev, %v: %v\n%s", stores, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(d.dir, "dev.json")); err != nil {
		d.t.Errorf("a second dev: %v", err)
	}
}

// sweep ends what a failed test left running.
func (d *devRun) sweep() {
	if d.cmd != nil && d.cmd.Process != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.ended:
		case <-time.After(15 * time.Second):
			_ = d.cmd.Process.Kill()
			<-d.ended
		}
	}
}

var client = &http.Client{Timeout: 20 * time.Second}

// call makes a request, and decodes the answer into out.
func (d *devRun) call(method, url, key string, in, out any) (int, error) {
	return d.callAs(d.addr.APIKey, method, url, key, in, out)
}

func (d *devRun) callAs(who, method, url, key string, in, out any) (int, error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequest(method, url, &body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+who)
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if out != nil {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	return resp.StatusCode, err
}

// try submits a message whose subject and key are its name.
func (d *devRun) try(name string, push bool) error {
	path, body := "/v1/emails", map[string]any{"from": "app@example.com", "to": []string{name + "@example.net"}, "subject": name, "text": "Hello"}
	if push {
		path, body = "/v1/pushes", map[string]any{"platform": "fcm", "to": "token-" + name, "notification": map[string]string{"title": name}}
	}
	status, err := d.call(http.MethodPost, d.addr.API+path, name, body, nil)
	if err == nil && status != http.StatusAccepted && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

func (d *devRun) submit(name string, push bool) {
	d.t.Helper()
	if err := d.try(name, push); err != nil {
		d.t.Fatalf("submit %s: %v\n%s", name, err, &d.out)
	}
}

// inbox counts how often each subject came.
func (d *devRun) inbox() map[string]int {
	d.t.Helper()
	var list []struct{ Channel, To, Subject string }
	if status, err := d.call(http.MethodGet, d.addr.Inbox+"/messages", "", nil, &list); err != nil || status != http.StatusOK {
		d.t.Fatalf("inbox: %d %v", status, err)
	}
	counts := make(map[string]int)
	for _, m := range list {
		counts[m.Subject]++
	}
	return counts
}

func (d *devRun) await(what string, done func() bool) {
	d.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			d.t.Fatalf("not in a minute: %s\n%s", what, &d.out)
		}
	}
}

// pushes sends one of each platform, which arrives, and one that the provider
// says is gone; and one that no provider would take is refused at the door.
func (d *devRun) pushes() {
	d.t.Helper()
	device := strings.Repeat("0123456789abcdef", 4)
	for platform, to := range map[string]any{"fcm": "token", "apns": device, "webpush": d.addr.Subscription} {
		push := func(key, text string) (int, string) {
			d.t.Helper()
			var out struct {
				Messages []struct{ ID string }
				Errors   []struct{ Field string }
			}
			body := map[string]any{"platform": platform, "to": to, "notification": map[string]string{"title": key, "body": text}}
			status, err := d.call(http.MethodPost, d.addr.API+"/v1/pushes", key, body, &out)
			if err != nil {
				d.t.Fatal(err)
			}
			if status != http.StatusAccepted && status != http.StatusOK {
				return status, fmt.Sprint(out.Errors)
			}
			return status, out.Messages[0].ID
		}
		taken, gone, large := "taken by "+platform, "gone from "+platform, "too large for "+platform
		if status, text := push(taken, "x"); status != http.StatusAccepted {
			d.t.Fatalf("%s: %d %s", taken, status, text)
		}
		d.await(taken, func() bool { return d.inbox()[taken] == 1 })
		if status, text := push(large, strings.Repeat("x", 4096)); status != http.StatusUnprocessableEntity || text != "[{notification}]" {
			d.t.Errorf("%s: %d %s", large, status, text)
		}
		code := map[string]string{"fcm": "UNREGISTERED", "apns": "Unregistered", "webpush": "gone"}[platform]
		d.misbehave(platform, map[string]any{"step": "body", "do": "answer", "error": code})
		status, id := push(gone, "x")
		if status != http.StatusAccepted {
			d.t.Fatalf("%s: %d %s", gone, status, id)
		}
		d.await(gone, func() bool {
			var m struct{ State, Reason string }
			_, err := d.call(http.MethodGet, d.addr.API+"/v1/messages/"+id, "", nil, &m)
			return err == nil && m.State == "failed" && m.Reason == "recipient_gone"
		})
		d.suppressed(platform, gone, id, push)
		d.misbehave(platform)
	}
}

// suppressed sends to a recipient that is gone: it is refused, unless the same
// request was accepted before, until it is taken off the list.
func (d *devRun) suppressed(platform, gone, id string, push func(key, text string) (int, string)) {
	d.t.Helper()
	n := 0
	d.await("a recipient of "+platform+" is suppressed", func() bool {
		n++
		status, text := push(fmt.Sprintf("again %d to %s", n, platform), "x")
		return status == http.StatusUnprocessableEntity && text == "[{to}]"
	})
	if status, text := push(gone, "x"); status != http.StatusOK || text != id {
		d.t.Errorf("the same request again: %d %s, want %s", status, text, id)
	}
	var list struct {
		Items []struct {
			ID                    int64
			Channel, To, Provider string
		}
	}
	if _, err := d.call(http.MethodGet, d.addr.API+"/v1/suppressions?channel=push", "", nil, &list); err != nil || len(list.Items) != 1 || list.Items[0].Provider != platform {
		d.t.Fatalf("suppressions: %+v, %v", list, err)
	}
	if status, err := d.call(http.MethodDelete, fmt.Sprintf("%s/v1/suppressions/%d", d.addr.API, list.Items[0].ID), "", nil, nil); err != nil || status != http.StatusOK {
		d.t.Errorf("clear: %d %v", status, err)
	}
	d.await("it is taken again", func() bool {
		n++
		status, _ := push(fmt.Sprintf("again %d to %s", n, platform), "x")
		return status == http.StatusAccepted
	})
}
