package credential

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// readMaterial finds out what a value says of itself. A JWT (RFC 7519) says when
// it was issued and ends; so may a JSON object with access_token beside it, as
// token files have: expires_at or expiry, and issued_at, each a RFC 3339 time or
// Unix seconds. Anything else is the value, without line ends behind it.
func readMaterial(text string) Material {
	text = strings.TrimRight(text, "\r\n")
	var m Material
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		var f struct {
			AccessToken string `json:"access_token"`
			ExpiresAt   moment `json:"expires_at"`
			Expiry      moment `json:"expiry"`
			IssuedAt    moment `json:"issued_at"`
		}
		if json.Unmarshal([]byte(text), &f) == nil && f.AccessToken != "" {
			m = readJWT(f.AccessToken)
			for _, t := range []moment{f.Expiry, f.ExpiresAt} {
				if !t.IsZero() {
					m.Expires = t.Time
				}
			}
			if !f.IssuedAt.IsZero() {
				m.Issued = f.IssuedAt.Time
			}
			return m
		}
		return Material{Value: Secret(text)}
	}
	return readJWT(text)
}

func readJWT(text string) Material {
	m := Material{Value: Secret(text)}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return m
	}
	var header struct {
		Alg, Kid string
	}
	var claims struct {
		Iat, Nbf, Exp float64
	}
	for i, v := range []any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(b, v) != nil {
			return m
		}
	}
	if header.Alg == "" {
		return m
	}
	m.Issued, m.NotBefore, m.Expires = unix(claims.Iat), unix(claims.Nbf), unix(claims.Exp)
	if header.Kid != "" {
		m.Label = "key " + clean(header.Kid, "")
	}
	return m
}

func unix(seconds float64) time.Time {
	if seconds <= 0 || seconds > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// moment is a time as token files have it.
type moment struct{ time.Time }

// UnmarshalJSON reads RFC 3339 or Unix seconds. It never fails: what can't be
// read says nothing.
func (m *moment) UnmarshalJSON(b []byte) error {
	var s float64
	if json.Unmarshal(b, &s) == nil {
		m.Time = unix(s)
		return nil
	}
	var t time.Time
	if json.Unmarshal(b, &t) == nil {
		m.Time = t
	}
	return nil
}
