package broker

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Readers and groups sign in another way than writers and clients, so each
// mechanism must bring a record through all of them.
func TestSASLAndTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	server := &tls.Config{Certificates: web.TLS.Certificates}
	client := web.Client().Transport.(*http.Transport).TLSClientConfig
	web.Close()

	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser(mechanism, "app", "secret"), kfake.TLS(server))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(k.Close)
			signIn := func(password string) *Broker {
				return newBroker(t, k.ListenAddrs(), func(c *Config) {
					c.TLS, c.Mechanism, c.Username, c.Password = client.Clone(), mechanism, "app", password
				})
			}
			if _, err := probe(t, signIn("wrong"), 5*time.Second); err == nil {
				t.Error("a wrong password signs in")
			}
			b := withTopics(t, signIn("secret"))
			in := newInbox(t)
			_, stop := consume(t, b, in)
			defer stop()
			all := items(urgent, 1, 10, 10)
			publisher(t, b).Publish(all)
			in.all(t, all)
		})
	}
}
