package sim

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Close waits for what a server is in the middle of, so that nothing is stored
// or called after it.
func TestCloseWaits(t *testing.T) {
	for _, way := range []string{"SMTP", "HTTP/1.1", "HTTP/2.0"} {
		t.Run(way, func(t *testing.T) {
			entered := make(chan struct{})
			var closing context.Context
			var left atomic.Bool
			fault := Fault{Step: StepReply, Hook: func(Event) {
				close(entered)
				<-closing.Done()
				time.Sleep(20 * time.Millisecond) // for Close to return in, were it wrong
				left.Store(true)
			}}
			var server interface{ Close() error }
			if way == "SMTP" {
				s := startSMTP(t, SMTPOptions{})
				server, closing = s, s.gate.ctx
				setFaults(t, s, fault)
				reach(t, s, StepReply)
			} else {
				s := startFCM(t, FCMOptions{})
				server, closing = s, s.gate.ctx
				setFaults(t, s, fault)
				c := httpClient(t, transports(s)[way])
				failed := make(chan error, 1)
				t.Cleanup(func() {
					if err := <-failed; err == nil {
						t.Error("answered by a closed server")
					}
				})
				go func() {
					_, _, _, err := post(t.Context(), c, s.URL()+"/v1/projects/p/messages:send", "any", `{"message":{"token":"t"}}`)
					failed <- err
				}()
			}
			<-entered
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			if !left.Load() {
				t.Fatal("Close returned while a hook was running")
			}
			if err := server.Close(); err != nil {
				t.Fatalf("a second time: %v", err)
			}
		})
	}
}

// A kept-alive connection that nobody uses doesn't hold Close up.
func TestCloseEndsIdleConnections(t *testing.T) {
	s := startFCM(t, FCMOptions{})
	for _, tr := range transports(s) {
		if status, _, _ := push(t, httpClient(t, tr), s, `{"message":{"token":"t"}}`); status != 200 {
			t.Fatal(status)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tr := range transports(s) {
		_, _, _, err := post(t.Context(), httpClient(t, tr), s.URL()+"/v1/projects/p/messages:send", "any", "{}")
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Fatalf("after Close: %v", err)
		}
	}
}
