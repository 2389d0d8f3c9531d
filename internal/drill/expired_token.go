package drill

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
	"github.com/stormpost/stormpost/internal/sim"
)

const (
	pauseLimit = 5 * time.Second  // between two pushes that the provider takes
	tokenLife  = 60 * time.Second // while the token server fails
	rotations  = 5
)

var expiredToken = Drill{
	Name: "expired-token",
	Outage: `A provider of email and push, for hours: a deploy put an expired token in place of the working one, and
nothing could be sent until it was rolled back.`,
	About: `A deploy delivers an expired token in place of the working one; a process is started with the expired one
alone; the processes move to a service account, whose token server fails while a refresh is due; then all tokens are
revoked, 5 times. No message fails or is lost, pushes never pause for 5 s, the credential is named within 10 s, and the
process that has only the expired token is never ready.`,
	Shape: Shape{Prepare: giveToken, Rate: 200, Calm: true, Reachable: true},
	Run: func(ctx context.Context, s *Stage) error {
		whole := &server{stage: s, name: "whole", roles: "api,worker,watch"} // tells of its own credentials
		if err := whole.start(ctx); err != nil {
			return err
		}
		s.others = append(s.others, whole)
		var last, longest atomic.Int64 // Unix nanoseconds; a pause
		if err := s.sims.FCM.Faults.AddFault(sim.Fault{Step: sim.StepReply, Do: sim.Slow, Hook: func(sim.Event) {
			now := time.Now().UnixNano()
			if was := last.Swap(now); was != 0 {
				for gap := now - was; gap > longest.Load(); {
					longest.Store(gap)
				}
			}
		}}); err != nil {
			return err
		}
		if err := s.At(ctx, 0.1); err != nil {
			return err
		}
		longest.Store(0) // what the start took is nobody's fault

		unready, err := s.deployExpired(ctx, whole)
		if err != nil {
			return err
		}
		if err := s.failTokenServer(ctx, whole); err != nil {
			return err
		}
		// What is revoked while a worker still waits to ask the token server again
		// pauses for the rest of that wait.
		if err := s.Wait(ctx, pauseLimit); err != nil {
			return err
		}
		rotated := 0 // of which a worker has seen that its token is refused
		for i := range rotations {
			before, until := s.sims.Token.Requests(), time.Now().Add(pauseLimit)
			// An incident isn't due: the program sees the refusal, and has another token
			// within a second or two.
			h := s.Harm(nil, "rotation %d: every token is revoked", i+1)
			s.sims.Token.Revoke()
			h.Bites()
			if s.Until(ctx, pauseLimit, func() bool { return s.sims.Token.Requests() > before }) {
				h.Noticed()
				rotated++
			}
			if err := s.Wait(ctx, time.Until(until)); err != nil {
				return err
			}
		}
		s.Healed("no more rotations")
		s.Evidence("rotations_that_bit", rotated)
		s.Bit(unready && rotated == rotations)
		pause := time.Duration(max(longest.Load(), time.Now().UnixNano()-last.Load())) // that of now, too
		s.Evidence("longest_pause_of_pushes_s", pause.Seconds())
		if pause > pauseLimit {
			s.Broke("no push was taken for %.1f s", pause.Seconds())
		}
		if n := s.load.refused.count(); n > 0 {
			s.Broke("requests were answered 503 in %d seconds", n)
		}
		var a audited
		if err := s.get(ctx, 0, "/v1/audit", &a); err != nil {
			s.Broke("the API doesn't say how many failed: %v", err)
		} else if a.Total.Failed > 0 {
			s.Broke("%d messages failed", a.Total.Failed)
		}
		return s.At(ctx, 1)
	},
}

func (s *Stage) tokenFile(name string) string { return filepath.Join(s.dir, name, "token") }

// writeToken renames a token into place.
func writeToken(path, token string, issued, expires time.Time) error {
	b, err := json.Marshal(map[string]any{"access_token": token, "issued_at": issued, "expires_at": expires})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// fetchToken asks the token server for one, as the service account.
func (s *Stage) fetchToken(ctx context.Context) (string, error) {
	account, err := os.ReadFile(s.sims.ServiceAccountFile)
	if err != nil {
		return "", err
	}
	key := credential.New(credential.Config{Name: "drill", Source: credential.Fixed("drill", string(account))})
	defer key.Close()
	got, err := (&credential.JWTBearer{Key: key, Scope: sim.FCMScope}).Fetch(ctx)
	if err != nil {
		return "", err
	}
	return got.Value.Reveal(), nil
}

// giveToken has the processes take FCM's token from a file.
func giveToken(ctx context.Context, s *Stage) error {
	token, err := s.fetchToken(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := writeToken(s.tokenFile("secrets"), token, now, now.Add(time.Hour)); err != nil {
		return err
	}
	s.env = append(s.env, "STORMPOST_FCM_SERVICE_ACCOUNT=", "STORMPOST_FCM_TOKEN=file:"+s.tokenFile("secrets"),
		"STORMPOST_FCM_PROJECT="+s.sims.Token.Project(), "STORMPOST_SECRETS_ROOT="+s.dir)
	return nil
}

// deployExpired puts an expired token in place of the good one, for a while, and
// starts a process that has nothing else. It says whether that one was unready.
func (s *Stage) deployExpired(ctx context.Context, whole *server) (unready bool, err error) {
	good, err := s.fetchToken(ctx)
	if err != nil {
		return false, err
	}
	now := time.Now()
	h := s.Harm([]string{fcmCredential, fcmProvider}, "a deploy delivers an expired token")
	if err := writeToken(s.tokenFile("secrets"), "expired-"+good, now.Add(-2*time.Hour), now.Add(-time.Hour)); err != nil {
		return false, err
	}
	h.Bites()
	if !s.Until(ctx, noticeLimit, func() bool { return s.named(ctx, whole, fcmCredential) }) {
		s.Broke("no incident named the credential within %s", noticeLimit)
	}
	s.Evidence("credential_named_after_s", time.Since(now).Seconds())
	if err := writeToken(s.tokenFile("fresh-secrets"), "expired-"+good, now.Add(-2*time.Hour), now.Add(-time.Hour)); err != nil {
		return false, err
	}
	fresh := &server{stage: s, name: "fresh", roles: "api,worker", env: []string{"STORMPOST_FCM_TOKEN=file:" + s.tokenFile("fresh-secrets")}}
	if err := fresh.start(ctx); err != nil {
		return false, err
	}
	defer fresh.stop(15 * time.Second)
	answers := 0
	until := time.Now().Add(s.Scaled(20*time.Second, 6*time.Second))
	for time.Now().Before(until) {
		switch status, text := s.readyz(ctx, fresh); {
		case status == http.StatusServiceUnavailable && strings.Contains(text, "fcm"):
			answers++
		case status != 0:
			s.Broke("a process with the expired token alone answers /readyz with %d: %s", status, text)
			until = time.Now()
		}
		if err := s.Wait(ctx, 200*time.Millisecond); err != nil {
			return false, err
		}
	}
	s.Evidence("unready_answers_of_the_fresh_process", answers)
	if status, text := s.readyz(ctx, whole); status != http.StatusOK {
		s.Broke("the running process isn't ready any more: %d %s", status, text)
	}
	s.Event("the deploy is rolled back")
	return answers > 0, writeToken(s.tokenFile("secrets"), good, time.Now(), time.Now().Add(time.Hour))
}

// failTokenServer moves the workers to the service account, and has its token
// server fail for 10 s from when the one that tells of it is refused a token.
func (s *Stage) failTokenServer(ctx context.Context, whole *server) error {
	s.sims.Token.SetLifetime(tokenLife)
	s.env = append(slices.Clone(s.env), "STORMPOST_FCM_TOKEN=", "STORMPOST_FCM_PROJECT=", "STORMPOST_FCM_SERVICE_ACCOUNT=file:"+s.sims.ServiceAccountFile)
	had := s.sims.Token.Requests()
	for _, p := range slices.Backward(s.others) { // the one that tells is the first to need another
		if strings.Contains(p.roles, "worker") {
			s.Event("%s is replaced by one with the service account", p.name)
			p.stop(15 * time.Second)
			if err := p.start(ctx); err != nil {
				return err
			}
			had++
		}
	}
	if !s.Until(ctx, tokenLife/2, func() bool { return s.sims.Token.Requests() >= had }) { // what is due next is a refresh
		return fmt.Errorf("not every process asked for a token within %s", tokenLife/2)
	}
	before := s.sims.Token.Requests()
	h := s.Harm([]string{fcmCredential, fcmProvider}, "the token server answers 503")
	if err := s.sims.Token.Faults.SetFaults(sim.Fault{Step: sim.StepHeaders, Do: sim.Answer, Code: http.StatusServiceUnavailable}); err != nil {
		return err
	}
	if !s.Until(ctx, tokenLife, func() bool { return s.sims.Token.Requests() > before }) {
		return fmt.Errorf("no process asked for a token within %s", tokenLife)
	}
	// Of its credential only a process that watches tells: it has to be refused itself.
	met := s.Until(ctx, tokenLife/8, func() bool {
		return slices.ContainsFunc(s.logLines(whole.name), func(l logLine) bool {
			return l.Credential == "fcm" && l.Msg == "credential can't be refreshed" && l.Time.After(h.began)
		})
	})
	if met {
		h.Bites()
	}
	s.Evidence("the_watching_process_was_refused_a_token", met)
	if err := s.Wait(ctx, noticeLimit); err != nil {
		return err
	}
	h.Over()
	s.sims.Token.Faults.ClearFaults()
	s.Evidence("tokens_refused", s.sims.Token.Requests()-before)
	s.Healed("the token server is back")
	return nil
}

// named says whether p has an open incident of a cause.
func (s *Stage) named(ctx context.Context, p *server, cause string) bool {
	var page struct{ Items []struct{ Cause string } }
	_, err := s.getFrom(ctx, p.current().api, s.oper, "/v1/incidents?state=open&limit=200", &page)
	return err == nil && slices.ContainsFunc(page.Items, func(i struct{ Cause string }) bool { return i.Cause == cause })
}

// readyz is what p answers, or 0.
func (s *Stage) readyz(ctx context.Context, p *server) (status int, text string) {
	var body json.RawMessage
	status, err := s.getFrom(ctx, p.current().api, s.oper, "/readyz", &body)
	if err != nil {
		text = err.Error()
	}
	return status, text
}
