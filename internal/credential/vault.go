package credential

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Vault is a Source that reads one field of a secret in the KV version 2 engine
// of HashiCorp Vault or OpenBao, by their HTTP API. URL, Token, Path and Field
// are required. A token that is renewable is renewed ahead of its end.
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

	life tokenLife // Fetch's alone
}

var _ Source = (*Vault)(nil)

func (v *Vault) follows() []*Credential { return []*Credential{v.Token} }

func (v *Vault) String() string {
	return "vault " + strings.Trim(cmp.Or(v.Mount, "secret"), "/") + "/" + strings.Trim(v.Path, "/") + " field " + v.Field
}

func (v *Vault) identity() string {
	return fmt.Sprintf("%q %q %q %q %q", v.URL, v.Namespace, v.Mount, v.Path, v.Field)
}

// Fetch reads the newest version, and sees to the token. A token that the server
// refuses gives way to the next that Token has, once.
func (v *Vault) Fetch(ctx context.Context) (Material, error) {
	server := vaultServer{v.URL, v.Namespace, v.Token, v.Client, clock(v.Now)}
	asked := server.now()
	body, use, err := server.ask(ctx, http.MethodGet, vaultPath(cmp.Or(v.Mount, "secret"), "data", v.Path), nil)
	if err != nil {
		return Material{}, err
	}
	m, err := v.material(body)
	if err != nil {
		return m, err
	}
	v.life.keep(ctx, server, use, asked)
	if !v.life.due.IsZero() && v.life.due.Before(m.Next) {
		m.Next = v.life.due
	}
	return m, nil
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
	m.Next = clock(v.Now)().Add(cmp.Or(v.Every, 30*time.Second))
	return m, nil
}
