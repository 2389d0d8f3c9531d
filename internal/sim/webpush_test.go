package sim

import (
	"crypto/ecdh"
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stormpost/stormpost/internal/credential"
)

// The receiver's side of RFC 8291, Appendix A.
func TestWebPushAppendixA(t *testing.T) {
	b64 := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	private, err := ecdh.P256().NewPrivateKey(b64("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"))
	if err != nil {
		t.Fatal(err)
	}
	b := simBrowser{private, b64("BTBZMqHH6r4Tts7J_aSIgg")}
	body := b64("DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN")
	plain, err := b.decrypt(body)
	if err != nil || string(plain) != "When I grow up, I want to be a watermelon" {
		t.Errorf("%q, %v", plain, err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "a cut header": body[:60], "a cut record": body[:len(body)-1], "no tag": body[:90],
		"another record": append(append([]byte{}, body[:100]...), make([]byte, len(body)-100)...),
	} {
		if _, err := b.decrypt(bad); err == nil {
			t.Errorf("%s was decrypted", name)
		}
	}
}

func FuzzWebPushDecrypt(f *testing.F) {
	private, err := ecdh.P256().NewPrivateKey(append(make([]byte, 31), 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(make([]byte, 120))
	f.Fuzz(func(_ *testing.T, body []byte) { _, _ = simBrowser{private, make([]byte, 16)}.decrypt(body) })
}

func TestWebPush(t *testing.T) {
	store := openStore(t, t.TempDir())
	s, err := StartWebPush(t.Context(), WebPushOptions{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tr := http2To(t, &tls.Config{RootCAs: s.Pool()})
	sub := s.Subscribe("a")
	if again := s.Subscribe("a"); again.Keys["auth"] != sub.Keys["auth"] || s.Subscribe("b").Keys["auth"] == sub.Keys["auth"] {
		t.Error("subscriptions change, or are alike")
	}
	key, _, err := newES256Key()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	vapid := func(aud, sub string, life time.Duration) string {
		token, err := credential.SignES256(key, nil, map[string]any{"aud": aud, "sub": sub, "exp": time.Now().Add(life).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		return "vapid t=" + token + ", k=" + base64.RawURLEncoding.EncodeToString(public)
	}
	good := map[string]string{
		"Authorization": vapid(s.URL(), "mailto:a@b.example", time.Hour), "TTL": "60", "Urgency": "high", "Content-Encoding": "aes128gcm",
		"Topic": strings.Repeat("x", 32),
	}
	for name, c := range map[string]struct {
		header, value string
		body          string
		status        int
	}{
		"good":           {"", "", "nonsense", 201},
		"no TTL":         {"TTL", "", "x", 400},
		"bad TTL":        {"TTL", "-1", "x", 400},
		"urgency":        {"Urgency", "now", "x", 400},
		"topic":          {"Topic", strings.Repeat("x", 33), "x", 400},
		"encoding":       {"Content-Encoding", "aesgcm", "x", 400},
		"too large":      {"", "", strings.Repeat("x", 4097), 413},
		"the largest":    {"", "", strings.Repeat("x", 4096), 201},
		"no VAPID":       {"Authorization", "", "x", 403},
		"another's aud":  {"Authorization", vapid("https://push.example", "mailto:a@b.example", time.Hour), "x", 403},
		"a long life":    {"Authorization", vapid(s.URL(), "mailto:a@b.example", 25*time.Hour), "x", 403},
		"expired":        {"Authorization", vapid(s.URL(), "mailto:a@b.example", -time.Second), "x", 403},
		"no subject":     {"Authorization", vapid(s.URL(), "", time.Hour), "x", 403},
		"a broken token": {"Authorization", strings.Replace(good["Authorization"], ".", ".A", 1), "x", 403},
	} {
		h := map[string]string{}
		for k, v := range good {
			h[k] = v
		}
		if c.header != "" {
			h[c.header] = c.value
		}
		n := store.Count()
		status, text, header := fetchAnswer(t, tr, "POST", sub.Endpoint, h, c.body)
		if status != c.status || (status == 201) != (header.Get("Location") != "") || (store.Count() > n) != (status == 201) {
			t.Errorf("%s: %d %s, want %d", name, status, text, c.status)
		}
	}
	if x := store.List(1, nil)[0]; x.Provider != "webpush" || x.To != sub.Endpoint || x.From != "mailto:a@b.example" || !strings.Contains(x.Subject, "can't be decrypted") {
		t.Errorf("stored %+v", x)
	}
	setFaults(t, s, Fault{Step: StepHeaders, Do: Answer, Error: "gone"})
	if status, _, _ := fetchAnswer(t, tr, "POST", sub.Endpoint, good, "x"); status != http.StatusGone {
		t.Errorf("fault: %d", status)
	}
}
