package credential

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"

	"github.com/stormpost/stormpost/internal/message"
)

// ServiceAccount is a Google service account, as its key file gives it. It
// prints as its address alone.
type ServiceAccount struct {
	ProjectID   string
	ClientEmail string
	TokenURI    string // the endpoint's URL, and the audience of assertions

	keyID string
	key   *rsa.PrivateKey
}

// ParseServiceAccount reads the JSON key file that Google's console makes. It
// fails with message.FieldErrors that name each bad field, but show none.
func ParseServiceAccount(file []byte) (*ServiceAccount, error) {
	var f struct {
		Type         string `json:"type"`
		ProjectID    string `json:"project_id"`
		PrivateKeyID string `json:"private_key_id"`
		PrivateKey   string `json:"private_key"`
		ClientEmail  string `json:"client_email"`
		TokenURI     string `json:"token_uri"`
	}
	var errs message.FieldErrors
	add := func(field, problem string) {
		errs = append(errs, message.FieldError{Field: "service_account." + field, Problem: problem})
	}
	// A decoder's error may quote its input, so it is not passed on.
	if err := json.Unmarshal(file, &f); err != nil {
		return nil, message.FieldErrors{{Field: "service_account", Problem: "is not a service account's JSON key file"}}
	}
	if f.Type != "service_account" {
		add("type", `want "service_account"`)
	}
	for _, required := range []struct{ field, value string }{
		{"project_id", f.ProjectID}, {"client_email", f.ClientEmail}, {"token_uri", f.TokenURI},
	} {
		if required.value == "" {
			add(required.field, "is required")
		}
	}
	key, err := parseKey(f.PrivateKey)
	if err != nil {
		add("private_key", err.Error())
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return &ServiceAccount{ProjectID: f.ProjectID, ClientEmail: f.ClientEmail, TokenURI: f.TokenURI, keyID: f.PrivateKeyID, key: key}, nil
}

// CheckServiceAccount is a Config.Check for key files. Unless they are empty,
// the account must be of project, and tokenURL stands for its token_uri.
func CheckServiceAccount(project, tokenURL string) func(value string) error {
	return func(value string) error {
		a, err := ParseServiceAccount([]byte(value))
		if err != nil {
			return err
		}
		if project != "" && a.ProjectID != project {
			return message.FieldErrors{{Field: "service_account.project_id", Problem: "is another project's than it was"}}
		}
		if tokenURL == "" {
			if _, err := CheckURL(a.TokenURI); err != nil {
				return message.FieldErrors{{Field: "service_account.token_uri", Problem: err.Error()}}
			}
		}
		return nil
	}
}

// parseKey reads a PKCS #8 or PKCS #1 key in PEM.
func parseKey(text string) (*rsa.PrivateKey, error) {
	if text == "" {
		return nil, errors.New("is required")
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("is not PEM")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("is not a PKCS #8 or PKCS #1 private key")
	}
	k, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("is a %T, want an RSA key", key)
	}
	return k, nil
}

// String is the account's address.
func (a *ServiceAccount) String() string { return a.ClientEmail }

// GoString is String, so that %#v shows no key either.
func (a *ServiceAccount) GoString() string { return a.ClientEmail }

// LogValue is String.
func (a *ServiceAccount) LogValue() slog.Value { return slog.StringValue(a.ClientEmail) }
