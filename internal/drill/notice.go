package drill

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// noticeLimit is how soon after a harm began to bite people must be able to hear of it.
const noticeLimit = 10 * time.Second

// What tells of a harm: an incident's kind, or its cause where it has a subject.
const (
	ledgerAway     = "ledger_away"
	kafkaAway      = "kafka_away"
	clusterChanged = "cluster_changed"
	rolledBack     = "ledger_rolled_back"
	numbering      = "numbering"
	fcmCredential  = "credential/fcm"
	fcmProvider    = "provider/fcm"
)

// ofStores are the kinds that tell of harm to a store: while one is done it need not
// answer.
var ofStores = []string{ledgerAway, kafkaAway, clusterChanged, rolledBack}

// harm is one that was done, and when it was noticed. Its methods may be called
// while the stage is at work.
type harm struct {
	stage *Stage
	what  string
	tells []string // any of these incidents tells of it; none: the drill sees it noticed
	names string   // how the fault's name in a log begins, where the incident doesn't name it

	began, bit, over, noticed time.Time
}

// Harm notes that a harm is about to be done, and which incidents tell of it. It
// counts once it bites.
func (s *Stage) Harm(tells []string, format string, args ...any) *harm {
	h := &harm{stage: s, what: fmt.Sprintf(format, args...), tells: tells, began: time.Now()}
	s.noteHarm(h)
	s.Event("%s", h.what)
	return h
}

func (s *Stage) noteHarm(h *harm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.harmed = true
	s.lastHarm, s.healed, s.result.RecoverS = h.began, time.Time{}, nil
	s.storeHarmed = s.storeHarmed || slices.ContainsFunc(h.tells, func(k string) bool { return slices.Contains(ofStores, k) })
	s.harmsDone = append(s.harmsDone, h)
}

// Bites marks that the harm is done: from now on it must be noticed.
func (h *harm) Bites() { h.mark(&h.bit) }

// Over marks that the drill undoes the harm, or does a worse one in its place. If
// that is before it had to be noticed, it need not be.
func (h *harm) Over() { h.mark(&h.over) }

// Noticed marks what the drill sees itself.
func (h *harm) Noticed() { h.mark(&h.noticed) }

func (h *harm) mark(at *time.Time) {
	h.stage.mu.Lock()
	defer h.stage.mu.Unlock()
	if at.IsZero() {
		*at = time.Now()
	}
}

// Healed marks that the stores are well again, from when recovery is counted.
func (s *Stage) Healed(format string, args ...any) {
	s.heal()
	s.Event(format, args...)
}

func (s *Stage) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.healed = time.Now()
	if s.storeHarmed {
		s.storeHarmed, s.unwell = false, s.healed
	}
}

// seen is an incident that a process told of.
type seen struct {
	by               string
	kind, cause      string
	opened, resolved time.Time // by that process's clock; resolved is zero while it is open
}

// incidents asks every API process, keeps what is told by id, and counts the causes
// that are open; nil where none tells.
func (s *Stage) incidents(ctx context.Context) (open *int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	told, causes := map[string]map[string]seen{}, map[string]bool{}
	for _, p := range slices.Concat(s.apis, s.others) {
		now := p.current()
		if now == nil || !strings.Contains(p.roles, "api") {
			continue
		}
		wg.Go(func() {
			var page struct {
				Items []struct {
					ID, Kind, Cause string
					OpenedAt        time.Time `json:"opened_at"`
					ResolvedAt      time.Time `json:"resolved_at"`
				}
			}
			if _, err := s.getFrom(ctx, now.api, s.oper, "/v1/incidents?limit=200", &page); err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			told[p.name] = map[string]seen{}
			for _, i := range page.Items {
				told[p.name][i.ID] = seen{p.name, i.Kind, i.Cause, i.OpenedAt, i.ResolvedAt}
				if i.ResolvedAt.IsZero() {
					causes[i.Cause] = true
				}
			}
		})
	}
	wg.Wait()
	if len(told) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = remember(s.told, told, time.Now())
	return new(len(causes))
}

// remember takes over what each process tells now. What one told of as open and
// has forgotten (it was killed) is open no more.
func remember(all map[string]seen, told map[string]map[string]seen, now time.Time) map[string]seen {
	if all == nil {
		all = make(map[string]seen)
	}
	for id, i := range all {
		if by, answered := told[i.by]; answered && i.resolved.IsZero() {
			if _, still := by[id]; !still {
				i.resolved = now
				all[id] = i
			}
		}
	}
	for _, by := range told {
		for id, i := range by {
			all[id] = i
		}
	}
	return all
}

// heard is when people could hear of h: an incident that tells of it opened since it was
// begun, or was open when it bit, since an earlier harm of which the same tells. first
// is when the first harm of which it tells was begun: what opened before is of none.
func (h *harm) heard(all map[string]seen, first map[string]time.Time) (at time.Time, by string) {
	for _, i := range all {
		over := i.opened.Before(h.began) && !i.resolved.IsZero() && i.resolved.Before(h.bit)
		for _, what := range h.tells {
			if (what == i.kind || what == i.cause) && !i.opened.Before(first[what]) && !over && (at.IsZero() || i.opened.Before(at)) {
				at, by = i.opened, i.cause
			}
		}
	}
	if !at.IsZero() && at.Before(h.bit) {
		at = h.bit // at once
	}
	return at, by
}

// noticing judges all harms that bit: told lists each, worst is the longest that
// one took (nil if one was never noticed that had to be, or none was), and late names
// those that weren't noticed in time. logged is when a log first named a fault that
// begins so, after a moment.
func noticing(harms []*harm, all map[string]seen, logged func(names string, after time.Time) time.Time) (told []map[string]any, worst *float64, late []string) {
	first := make(map[string]time.Time)
	for _, h := range harms {
		for _, kind := range h.tells {
			if at, known := first[kind]; !known || h.began.Before(at) {
				first[kind] = h.began
			}
		}
	}
	never := false
	for _, h := range harms {
		if h.bit.IsZero() {
			continue
		}
		at, by := h.noticed, "what the drill saw"
		if h.tells != nil {
			at, by = h.heard(all, first)
		}
		if h.names != "" && !at.IsZero() {
			// People hear of the kind, and find which it is in the log.
			switch line := logged(h.names, h.began); {
			case line.IsZero():
				at = line
			case line.After(at):
				at = line
			}
		}
		row := map[string]any{"harm": h.what, "may_tell": h.tells, "told_by": by, "noticed_after_s": nil}
		told = append(told, row)
		took := at.Sub(h.bit)
		if !at.IsZero() {
			row["noticed_after_s"] = *seconds(took)
		}
		if !h.over.IsZero() {
			row["over_after_s"] = *seconds(h.over.Sub(h.bit))
		}
		switch {
		case !at.IsZero() && took <= noticeLimit:
		case !h.over.IsZero() && h.over.Sub(h.bit) < noticeLimit:
			row["it_was_over_before"] = true
			continue
		default:
			late = append(late, h.what)
			if at.IsZero() {
				never = true
				continue
			}
		}
		if worst == nil || took.Seconds() > *worst {
			worst = seconds(took)
		}
	}
	if never {
		worst = nil
	}
	return told, worst, late
}

// judgeNotice tells of each harm how soon it was noticed. Where several are done at
// once (Shape.Mixed) one may hide another, and nothing is asked.
func (s *Stage) judgeNotice() {
	s.mu.Lock()
	harms, all := s.harmsDone, s.told
	s.mu.Unlock()
	var lines []logLine
	if slices.ContainsFunc(harms, func(h *harm) bool { return h.names != "" }) {
		for _, p := range slices.Concat(s.apis, s.others) {
			lines = append(lines, s.logLines(p.name)...)
		}
	}
	told, worst, late := noticing(harms, all, func(names string, after time.Time) (at time.Time) {
		for _, l := range lines {
			if strings.HasPrefix(l.Fault, names) && !l.Time.Before(after) && (at.IsZero() || l.Time.Before(at)) {
				at = l.Time
			}
		}
		return at
	})
	s.Evidence("noticed", told)
	s.result.NoticeS = worst
	if s.drill.Shape.Mixed {
		return
	}
	for _, what := range late {
		s.Broke("%s: that was not noticed within %s", what, noticeLimit)
	}
}

// logLine is a line of a process's log that names what is wrong.
type logLine struct {
	Time                   time.Time
	Msg, Fault, Credential string
}

// logLines are those of one process. A log that can't be read names nothing.
func (s *Stage) logLines(name string) (all []logLine) {
	f, err := os.Open(filepath.Join(s.dir, name, "log"))
	if err != nil {
		return nil
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var l logLine
		if named := bytes.Contains(scan.Bytes(), []byte(`"fault":`)) || bytes.Contains(scan.Bytes(), []byte(`"credential":`)); named && json.Unmarshal(scan.Bytes(), &l) == nil {
			all = append(all, l)
		}
	}
	return all
}

// lastBite is when the last harm bit.
func (s *Stage) lastBite() (at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.harmsDone {
		if h.bit.After(at) {
			at = h.bit
		}
	}
	return at
}
