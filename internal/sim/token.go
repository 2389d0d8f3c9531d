package sim

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// FCMScope is the OAuth scope that sending takes.
const FCMScope = "https://www.googleapis.com/auth/firebase.messaging"

const (
	jwtBearer     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	tokenPrefix   = "ya29.sim."
	tokenLifetime = time.Hour
	tokenMaxBody  = 16 << 10
)

// TokenOptions configure a TokenServer.
type TokenOptions struct {
	Addr     string        // where to listen; default a free port of 127.0.0.1
	Project  string        // of the service account; default stormpost-dev
	Lifetime time.Duration // of tokens, in whole seconds; default one hour
	// ClientID and ClientSecret may ask for tokens by client credentials and by
	// refresh token (RFC 6749 §4.4, §6), the latter with RefreshToken. Without a
	// ClientID nobody can.
	ClientID, ClientSecret, RefreshToken string
	// RotateRefresh gives a new refresh token with each access token that one
	// was used for, and takes the old one no more.
	RotateRefresh bool
	Clock         func() time.Time
	Log           *slog.Logger
}

// TokenServer is an OAuth 2.0 token endpoint like Google's: it gives an access
// token for an assertion that its one service account signed (RFC 7523,
// https://developers.google.com/identity/protocols/oauth2/service-account), and
// to its one client. Its answers are dated by Clock.
//
// Of its faults' steps, StepBody is before the token is made, StepReply after.
type TokenServer struct {
	*httpServer
	o        TokenOptions
	email    string
	keyID    string
	key      *rsa.PrivateKey
	requests atomic.Int64

	mu       sync.Mutex
	lifetime time.Duration
	secret   [32]byte // that the valid tokens are sealed with
	client   string   // the client's secret
	refresh  string
}

// StartToken makes a service account, listens, and serves until Close. ctx is
// for starting only.
func StartToken(ctx context.Context, o TokenOptions) (*TokenServer, error) {
	if o.Project == "" {
		o.Project = "stormpost-dev"
	}
	if o.Lifetime == 0 {
		o.Lifetime = tokenLifetime
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("start token simulator: %w", err)
	}
	id := sha256.Sum256(key.N.Bytes())
	s := &TokenServer{
		o:        o,
		email:    "stormpost@" + o.Project + ".iam.gserviceaccount.com",
		keyID:    hex.EncodeToString(id[:20]),
		key:      key,
		lifetime: o.Lifetime,
		client:   o.ClientSecret,
		refresh:  o.RefreshToken,
	}
	s.Revoke()
	documented := func(code string) bool { return code != "" }
	faults := newFaults(o.Clock, checkHTTPFault(documented), StepConnect, StepHeaders, StepBody, StepReply)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", s.token)
	if s.httpServer, err = serveHTTP(ctx, o.Addr, nil, faults, mux, o.Log); err != nil {
		return nil, fmt.Errorf("start token simulator: %w", err)
	}
	return s, nil
}

// TokenURL is the endpoint, and the audience that an assertion must have.
func (s *TokenServer) TokenURL() string { return s.URL() + "/token" }

// Project is the service account's project.
func (s *TokenServer) Project() string { return s.o.Project }

// Requests is how many requests for a token have come, whatever the answer.
func (s *TokenServer) Requests() int64 { return s.requests.Load() }

// SetLifetime changes how long tokens live that are given from now on.
func (s *TokenServer) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = d
}

// Revoke makes every token given so far invalid.
func (s *TokenServer) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = rand.Read(s.secret[:]) // never fails
}

// SetClientSecret replaces the client's secret.
func (s *TokenServer) SetClientSecret(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = secret
}

// SetRefreshToken replaces the refresh token that is good.
func (s *TokenServer) SetRefreshToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh = token
}

// ServiceAccount is the account as the JSON file that Google's console gives.
func (s *TokenServer) ServiceAccount() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		panic(err) // an RSA key that was just made can be written
	}
	file, err := json.MarshalIndent(map[string]string{
		"type":           "service_account",
		"project_id":     s.o.Project,
		"private_key_id": s.keyID,
		"private_key":    string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email":   s.email,
		"client_id":      "100000000000000000000",
		"auth_uri":       s.URL() + "/auth",
		"token_uri":      s.TokenURL(),
	}, "", "  ")
	if err != nil {
		panic(err) // strings can be written
	}
	return append(file, '\n')
}

// token answers a request for one (RFC 6749 §5).
func (s *TokenServer) token(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	w.Header().Set("Date", s.o.Clock().UTC().Format(http.TimeFormat))
	var did []string
	failed := func(step Step) bool {
		return s.fault(w, r, Event{Step: step, From: s.email}, &did, func(x *Fault) { answerTokenFault(w, x) })
	}
	if failed(StepHeaders) {
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, tokenMaxBody)
	if err := r.ParseForm(); err != nil {
		answerTokenError(w, http.StatusBadRequest, "invalid_request", "the form can't be read")
		return
	}
	if failed(StepBody) {
		return
	}
	answer, refused := s.grant(r)
	if refused != nil {
		answerTokenError(w, refused.status, refused.code, refused.description)
		return
	}
	token, lifetime := s.issue()
	if failed(StepReply) {
		return
	}
	answer["access_token"], answer["expires_in"], answer["token_type"] = token, int64(lifetime/time.Second), "Bearer"
	writeJSON(w, http.StatusOK, answer)
}

type tokenError struct {
	status            int
	code, description string
}

// grant says what beside the access token is the answer, or why there is none.
func (s *TokenServer) grant(r *http.Request) (map[string]any, *tokenError) {
	answer := map[string]any{}
	grant := r.PostForm.Get("grant_type")
	if grant == jwtBearer {
		err := s.verify(r.PostForm.Get("assertion"))
		switch {
		case errors.Is(err, errScope):
			return nil, &tokenError{http.StatusBadRequest, "invalid_scope", err.Error()}
		case err != nil:
			return nil, &tokenError{http.StatusBadRequest, "invalid_grant", err.Error()}
		}
		return answer, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	switch {
	case s.o.ClientID == "" || grant != "client_credentials" && grant != "refresh_token":
		return nil, &tokenError{http.StatusBadRequest, "unsupported_grant_type", "want " + jwtBearer}
	case id != s.o.ClientID || secret != s.client:
		// As careless as some: it repeats what it was shown.
		return nil, &tokenError{http.StatusUnauthorized, "invalid_client", "no client has the secret " + secret}
	case grant == "refresh_token" && (s.refresh == "" || r.PostForm.Get("refresh_token") != s.refresh):
		return nil, &tokenError{http.StatusBadRequest, "invalid_grant", "no refresh token is " + r.PostForm.Get("refresh_token")}
	case grant == "refresh_token" && s.o.RotateRefresh:
		s.refresh = rand.Text()
		answer["refresh_token"] = s.refresh
	}
	return answer, nil
}

// issue makes a token: when it ends, and a seal. So nothing has to be kept.
func (s *TokenServer) issue() (token string, lifetime time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := make([]byte, 16, 48)
	binary.BigEndian.PutUint64(b, uint64(s.o.Clock().Add(s.lifetime).UnixNano()))
	_, _ = rand.Read(b[8:]) // never fails
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(s.seal(b)), s.lifetime
}

// seal appends what proves that b is from here. Its caller holds mu.
func (s *TokenServer) seal(b []byte) []byte {
	mac := hmac.New(sha256.New, s.secret[:])
	mac.Write(b[:16])
	return mac.Sum(b[:16])
}

// Valid says whether token was given here, hasn't expired and isn't revoked.
func (s *TokenServer) Valid(token string) bool {
	if len(token) < len(tokenPrefix) {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(token[len(tokenPrefix):])
	if err != nil || len(b) != 16+sha256.Size {
		return false
	}
	s.mu.Lock()
	want := s.seal(append(make([]byte, 0, 48), b[:16]...))
	s.mu.Unlock()
	ends := time.Unix(0, int64(binary.BigEndian.Uint64(b)))
	return hmac.Equal(b, want) && s.o.Clock().Before(ends)
}

func answerTokenFault(w http.ResponseWriter, x *Fault) {
	status, code := x.Code, x.Error
	switch {
	case status == 0:
		status = http.StatusBadRequest
	case code != "":
	case status == http.StatusUnauthorized:
		code = "invalid_client"
	case status < 500:
		code = "invalid_grant"
	default:
		code = "internal_failure"
	}
	answerTokenError(w, status, code, "as simulated")
}

func answerTokenError(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}
