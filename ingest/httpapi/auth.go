package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

// securityName names the one security scheme in the document.
const securityName = "api_key"

// anyOf says that an operation needs a key with one of the scopes.
func anyOf(scopes ...keyring.Scope) []map[string][]string {
	out := make([]map[string][]string, len(scopes))
	for i, s := range scopes {
		out[i] = map[string][]string{securityName: {string(s)}}
	}
	return out
}

// scopesOf is the scopes of which op needs one; nil when it needs no key.
func scopesOf(op *huma.Operation) []keyring.Scope {
	var all []keyring.Scope
	for _, alternative := range op.Security {
		for _, s := range alternative[securityName] {
			all = append(all, keyring.Scope(s))
		}
	}
	return all
}

// signIn finds out who asks, before anything of the body is read, and whether
// they may. The 401 is the same whatever is wrong with the key.
func (a *api) signIn(r *http.Request, allowed []keyring.Scope) *Problem {
	principal, err := a.Keyring.Verify(bearer(r))
	if errors.Is(err, message.ErrUnavailable) {
		return unavailable("The API keys are not loaded yet.")
	}
	if err != nil {
		return newProblem(http.StatusUnauthorized, "unauthorized", "A valid API key is needed.").
			with("WWW-Authenticate", `Bearer realm="stormpost"`)
	}
	stateOf(r.Context()).principal = principal
	names := make([]string, len(allowed))
	for i, s := range allowed {
		// What a tenant sends needs a tenant; an operator's key may have none.
		if principal.Can(s) && (s != keyring.Send || principal.Tenant != 0) {
			return nil
		}
		names[i] = string(s)
	}
	return newProblem(http.StatusForbidden, "forbidden", "This API key doesn't allow that: it needs the scope "+strings.Join(names, " or ")+".")
}

// bearer is the request's token (RFC 6750 §2.1), or empty.
func bearer(r *http.Request) string {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// principalOf is who was signed in.
func principalOf(ctx context.Context) *keyring.Principal { return stateOf(ctx).principal }

// whoAsks names the key that was signed in, for the record.
func whoAsks(ctx context.Context) string {
	p := principalOf(ctx)
	name := p.Prefix
	if name == "" {
		name = strconv.FormatInt(p.KeyID, 10)
	}
	return strings.TrimSpace(p.TenantName + " key " + name)
}

// visible is the tenant whose things p sees, 0 for everybody's, when the request
// names the tenant asked, or none with 0.
func visible(p *keyring.Principal, asked int32) (int32, error) {
	switch {
	case p.Can(keyring.Operator):
		return asked, nil
	case asked != 0 && asked != p.Tenant:
		return 0, message.FieldErrors{{Field: "tenant", Problem: "only an operator may name another tenant"}}
	}
	return p.Tenant, nil
}

func newHumaContext(op *huma.Operation, r *http.Request, w http.ResponseWriter) huma.Context {
	return humachi.NewContext(op, r, w)
}
