package ses

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/stormpost/stormpost/internal/mail"
	"github.com/stormpost/stormpost/internal/message"
)

// sendRequest is the body of SendEmail.
type sendRequest struct {
	FromEmailAddress     string      `json:"FromEmailAddress"`
	Destination          destination `json:"Destination"`
	Content              content     `json:"Content"`
	EmailTags            []emailTag  `json:"EmailTags"`
	ConfigurationSetName string      `json:"ConfigurationSetName,omitempty"`
}

type destination struct {
	ToAddresses []string `json:"ToAddresses"`
}

type content struct {
	Raw raw `json:"Raw"`
}

type raw struct {
	Data []byte `json:"Data"` // base64
}

type emailTag struct {
	Name  string `json:"Name"`
	Value string `json:"Value"`
}

// encode is the request for one message. An error is the message's own fault,
// and a *mail.Unfit.
func (c *Config) encode(env *message.Envelope) ([]byte, error) {
	d, err := mail.NewDraft(env)
	if err != nil {
		return nil, err
	}
	if d.UTF8 {
		return nil, &mail.Unfit{Code: "5.6.7", Reason: "an address needs SMTPUTF8 (RFC 6531), which SES doesn't have"}
	}
	var msg bytes.Buffer
	if err := mail.Compose(&msg, env, &d, c.Now(), false); err != nil {
		return nil, err
	}
	if msg.Len() > MaxBytes {
		return nil, &mail.Unfit{Code: "5.3.4", Reason: fmt.Sprintf("the message has %d bytes, SES takes %d", msg.Len(), MaxBytes)}
	}
	return json.Marshal(sendRequest{
		FromEmailAddress: d.From.Spec(), Destination: destination{[]string{d.To.Spec()}}, Content: content{raw{msg.Bytes()}},
		EmailTags: []emailTag{{"stormpost_id", env.ID.String()}}, ConfigurationSetName: c.ConfigurationSet,
	})
}

// sign makes a header that is valid for minutes:
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
func (c *Config) sign(r *http.Request, body []byte, key string) error {
	hash := sha256.Sum256(body)
	return v4.NewSigner().SignHTTP(r.Context(), splitKey(key), r, hex.EncodeToString(hash[:]), "ses", c.Region, c.Now())
}

// Check says which addresses of e SES has no way to send to or from. It fails
// with message.FieldErrors.
func Check(e *message.Email) error {
	var errs message.FieldErrors
	check := func(field, text string) {
		if a, err := mail.ParseMailbox(field, text); err == nil && a.UTF8() {
			errs = append(errs, message.FieldError{Field: field, Problem: "has an address that needs SMTPUTF8 (RFC 6531), which SES doesn't have"})
		}
	}
	check("from", e.From)
	for name, list := range map[string][]string{"to": e.To, "cc": e.Cc, "bcc": e.Bcc, "reply_to": e.ReplyTo} {
		for i, text := range list {
			check(fmt.Sprintf("%s[%d]", name, i), text)
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}
