package sim

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sigSkew is how far a signature's time may be off.
const sigSkew = 5 * time.Minute

// verify checks Signature Version 4, written after
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
// It answers with an error's name, or nothing.
func (s *SESServer) verify(r *http.Request, body []byte) (kind, problem string) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if rest == "" {
		return "MissingAuthenticationToken", "Missing Authentication Token"
	}
	parts := make(map[string]string)
	for _, p := range strings.Split(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[name] = value
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if scheme != "AWS4-HMAC-SHA256" || parts["Signature"] == "" || err != nil {
		return "IncompleteSignature", "Authorization header is incomplete."
	}
	scope := at.Format("20060102") + "/" + s.o.Region + "/ses/aws4_request"
	signed := strings.Split(parts["SignedHeaders"], ";")
	now := s.o.Clock()
	switch {
	case parts["Credential"] != s.o.AccessKeyID+"/"+scope && !strings.HasPrefix(parts["Credential"], s.o.AccessKeyID+"/"):
		return "UnrecognizedClientException", "The security token included in the request is invalid."
	case parts["Credential"] != s.o.AccessKeyID+"/"+scope:
		return "InvalidSignatureException", "Credential should be scoped to " + scope + "."
	case now.Sub(at).Abs() > sigSkew:
		return "InvalidSignatureException", "Signature expired, or not yet current."
	case !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-date") || !slices.IsSorted(signed):
		return "InvalidSignatureException", "'Host' and 'X-Amz-Date' must be signed, in order."
	}
	hash := func(b []byte) string { sum := sha256.Sum256(b); return hex.EncodeToString(sum[:]) }
	canonical := r.Method + "\n" + r.URL.EscapedPath() + "\n" + r.URL.RawQuery + "\n"
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = r.Header.Get("Content-Length")
			if value == "" {
				value = strconv.FormatInt(r.ContentLength, 10)
			}
		}
		canonical += name + ":" + strings.Join(strings.Fields(value), " ") + "\n"
	}
	canonical += "\n" + parts["SignedHeaders"] + "\n" + hash(body)
	toSign := "AWS4-HMAC-SHA256\n" + at.Format("20060102T150405Z") + "\n" + scope + "\n" + hash([]byte(canonical))
	key := []byte("AWS4" + s.o.SecretKey)
	for _, part := range append(strings.Split(scope, "/"), toSign) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(key)), []byte(parts["Signature"])) {
		return "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."
	}
	return "", ""
}
