package credential

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Vault is a Source that reads one field of a secret in the KV version 2 engine
// of HashiCorp Vault or OpenBao, by their HTTP API. URL, Token, Path and Field
// are required.
type Vault struct {
	URL       string      // of the server, as https://vault.example:8200
	Token     *Credential // that may read the secret
	Namespace string
	Mount     string        // default secret
	Path      string        // below the mount, without "data"
	Field     string        // of the secret's data
	Every     time.Duration // how often to look for a new version; default 30 s
	Client    *http.Client  // it follows no redirects, whatever its own policy
	Now       func() time.Time
}

var _ Source = (*Vault)(nil)

func (v *Vault) follows() []*Credential { return []*Credential{v.Token} }

func (v *Vault) String() string {
	return "vault " + strings.Trim(cmp.Or(v.Mount, "secret"), "/") + "/" + strings.Trim(v.Path, "/") + " field " + v.Field
}

// Fetch reads the newest version. A token that the server refuses gives way to
// the next that Token has, once.
func (v *Vault) Fetch(ctx context.Context) (Material, error) {
	for try := 0; ; try++ {
		use, err := v.Token.Use(ctx)
		if err != nil {
			return Material{}, err
		}
		m, status, err := v.read(ctx, use.Value())
		switch status {
		case http.StatusForbidden, http.StatusUnauthorized:
			use.Rejected(err.Error())
			if try == 0 {
				continue
			}
		case http.StatusOK, http.StatusNotFound:
			use.Accepted()
		}
		return m, err
	}
}

const maxVaultReply = 2 << 20

func (v *Vault) read(ctx context.Context, token string) (m Material, status int, err error) {
	base, err := url.Parse(v.URL)
	if err != nil {
		return m, 0, errors.New("vault's URL can't be read")
	}
	parts := []string{"v1"}
	for _, p := range []string{cmp.Or(v.Mount, "secret"), "data", v.Path} {
		for s := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
			parts = append(parts, url.PathEscape(s))
		}
	}
	if base.Path == "" {
		base.Path = "/"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath(parts...).String(), nil)
	if err != nil {
		return m, 0, errors.New("vault's URL can't be read")
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if v.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", v.Namespace)
	}
	resp, err := noRedirects(v.Client).Do(req)
	if err != nil {
		return m, 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxVaultReply))
	if err != nil {
		return m, 0, fmt.Errorf("read from vault: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return m, resp.StatusCode, v.refusal(resp.StatusCode, body, token)
	}
	m, err = v.material(body)
	return m, resp.StatusCode, err
}

// material reads the answer of GET /v1/MOUNT/data/PATH.
func (v *Vault) material(body []byte) (Material, error) {
	var answer struct {
		Data struct {
			Data     map[string]any `json:"data"`
			Metadata struct {
				Version     int64     `json:"version"`
				CreatedTime time.Time `json:"created_time"`
			} `json:"metadata"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return Material{}, errors.New("vault's answer is not that of a KV version 2 engine")
	}
	value, ok := answer.Data.Data[v.Field].(string)
	if !ok || value == "" {
		return Material{}, fmt.Errorf("the secret in vault has no text in its field %s", v.Field)
	}
	m := readMaterial(value)
	m.Label = fmt.Sprintf("version %d", answer.Data.Metadata.Version)
	m.Issued = answer.Data.Metadata.CreatedTime
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	m.Next = now().Add(cmp.Or(v.Every, 30*time.Second))
	return m, nil
}

func (v *Vault) refusal(status int, body []byte, token string) error {
	var e struct {
		Errors []string `json:"errors"`
	}
	_ = json.Unmarshal(body, &e) // whatever it is, the status says enough
	switch what := clean(strings.Join(e.Errors, ", "), token); {
	case status == http.StatusNotFound && what == "":
		return errors.New("vault has no such secret, or its newest version was deleted")
	case what != "":
		return fmt.Errorf("vault answered %d: %s", status, what)
	}
	return fmt.Errorf("vault answered %d", status)
}
