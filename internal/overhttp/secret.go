package overhttp

import (
	"encoding/base64"
	"errors"
	"strings"
)

// ParseSecret reads a Standard Webhooks secret: whsec_ and the base64 of 24 to 64 bytes. Its error doesn't
// show the secret.
func ParseSecret(text string) ([]byte, error) {
	coded, ok := strings.CutPrefix(text, "whsec_")
	key, err := base64.StdEncoding.DecodeString(coded)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("want whsec_ and the base64 of 24 to 64 bytes: echo whsec_$(openssl rand -base64 32)")
	}
	return key, nil
}
