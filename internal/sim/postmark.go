package sim

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	netmail "net/mail"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Postmark's documented limits: https://postmarkapp.com/developer/api/email-api
// and https://postmarkapp.com/support/article/1125-custom-metadata-faq
const (
	postmarkMaxMessage = 10 << 20 // texts and attachments, these in base64
	postmarkMaxText    = 5 << 20
	postmarkMaxBody    = postmarkMaxMessage/3*4 + postmarkMaxMessage + 1<<20
	postmarkMaxTo      = 50
	postmarkMaxName    = 255
	postmarkMaxSubject = 2000
	postmarkMetaName   = 20
	postmarkMetaValue  = 80
)

// postmarkStream is the message stream that every server has.
const postmarkStream = "outbound"

// PostmarkServer is POST /email and GET /server of Postmark's API:
// https://postmarkapp.com/developer/api/email-api
type PostmarkServer struct{ *mailServer }

// StartPostmark listens and serves until Close. ctx is for starting only.
func StartPostmark(ctx context.Context, o MailOptions) (*PostmarkServer, error) {
	s, err := startMail(ctx, o, mailAPI{
		provider: "postmark", maxBody: postmarkMaxBody, errors: postmarkErrors, parse: parsePostmark, fail: failPostmark,
		unauthorized: func(r *http.Request) *mailError {
			if key := r.Header.Get("X-Postmark-Server-Token"); key == "" || o.Key != "" && key != o.Key {
				return postmarkError("10", "")
			}
			return nil
		},
		took: func(w http.ResponseWriter, ts []Taken) {
			writeJSON(w, http.StatusOK, map[string]any{
				"To": ts[0].To, "SubmittedAt": ts[0].ReceivedAt.Format(time.RFC3339Nano), "MessageID": ts[0].Reference, "ErrorCode": 0, "Message": "OK",
			})
		},
	}, "/email", func(s *mailServer, mux *http.ServeMux) {
		mux.HandleFunc("GET /server", func(w http.ResponseWriter, r *http.Request) {
			if bad := s.api.unauthorized(r); bad != nil {
				failPostmark(w, *bad)
				return
			}
			writeJSON(w, http.StatusOK, map[string]any{"ID": 1, "Name": "Simulated"})
		})
	})
	if err != nil {
		return nil, err
	}
	return &PostmarkServer{s}, nil
}

// postmarkMail is the body of POST /email.
type postmarkMail struct {
	From, To, Cc, Bcc, ReplyTo, Subject, TextBody, HTMLBody, Tag, TrackLinks, MessageStream string
	TrackOpens                                                                              bool
	Headers                                                                                 []struct{ Name, Value string }
	Attachments                                                                             []struct {
		Name, ContentType, ContentID string
		Content                      []byte
	}
	Metadata map[string]string
}

// parsePostmark reads a request, and finds the first thing that is wrong.
func parsePostmark(r *http.Request, body []byte) ([]Taken, *mailError) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") || r.Header.Get("Accept") != "application/json" {
		return nil, postmarkError("409", "")
	}
	var m postmarkMail
	if err := decodeMail(body, &m); err != nil {
		return nil, postmarkError("402", err.Error())
	}
	from, err := netmail.ParseAddress(m.From)
	if err != nil || !postmarkAddress(from.Address) || utf8.RuneCountInString(from.Name) > postmarkMaxName {
		return nil, postmarkError("300", "Invalid 'From' address.")
	}
	var all []string
	for _, field := range []string{m.To, m.Cc, m.Bcc} {
		list, err := addressList(field)
		if err != nil {
			return nil, postmarkError("300", "Error parsing a recipient: "+err.Error())
		}
		all = append(all, list...)
	}
	replies, err := addressList(m.ReplyTo)
	if err != nil {
		return nil, postmarkError("300", "Invalid 'ReplyTo'.")
	}
	for _, a := range slices.Concat(all, replies) {
		if !postmarkAddress(a) {
			return nil, postmarkError("300", "Illegal email mailbox: "+a)
		}
	}
	if m.To == "" || len(all) > postmarkMaxTo {
		return nil, postmarkError("300", "Want 1 to 50 recipients.")
	}
	if err := m.check(); err != nil {
		return nil, postmarkError("300", err.Error())
	}
	for _, a := range m.Attachments {
		if slices.Contains(postmarkForbidden, strings.ToLower(path.Ext(a.Name))) {
			return nil, postmarkError("411", "")
		}
	}
	if m.MessageStream != "" && m.MessageStream != postmarkStream {
		return nil, postmarkError("1235", "")
	}
	ts := make([]Taken, len(all))
	for i, to := range all {
		ts[i] = Taken{From: from.Address, To: to, Subject: shorten(m.Subject), MessageID: m.Metadata["stormpost_id"]}
	}
	return ts, nil
}

// postmarkAddress goes by the two patterns of
// https://postmarkapp.com/support/article/1180-what-does-errorcode-300-mean
func postmarkAddress(a string) bool {
	local, domain, _ := strings.Cut(a, "@")
	return postmarkLocal.MatchString(local) && postmarkDomain.MatchString(domain)
}

var (
	postmarkLocal  = regexp.MustCompile("(?i)^[a-z0-9.!#$%&'`*+/=^_{}|~-]+$")
	postmarkDomain = regexp.MustCompile(`^(\.?[a-zA-Z0-9-])+$`)
	postmarkHeader = regexp.MustCompile(`^[!-9;-~]{1,76}$`) // RFC 5322 §3.6.8: Postmark names no other rule
	// postmarkForbidden is a few of the types of
	// https://postmarkapp.com/developer/user-guide/send-email-with-api#attachments
	postmarkForbidden = []string{".bat", ".bin", ".com", ".cpl", ".exe", ".hta", ".jse", ".lnk", ".msi", ".pif", ".reg", ".scr", ".vbe", ".vbs"}
)

// check is of what 300 stands for.
func (m *postmarkMail) check() error {
	size := len(m.TextBody) + len(m.HTMLBody)
	for _, a := range m.Attachments {
		if a.Name == "" || a.ContentType == "" || len(a.Content) == 0 || a.ContentID != "" && !strings.HasPrefix(a.ContentID, "cid:") {
			return errors.New("an attachment lacks its Name, Content or ContentType, or its ContentID does not begin with cid")
		}
		size += base64.StdEncoding.EncodedLen(len(a.Content))
	}
	switch {
	case m.TextBody == "" && m.HTMLBody == "":
		return errors.New("provide either email TextBody or HtmlBody or both")
	case max(len(m.TextBody), len(m.HTMLBody)) > postmarkMaxText, size > postmarkMaxMessage:
		return errors.New("the message is too large")
	case len(m.Subject) > postmarkMaxSubject:
		return errors.New("the subject is too long")
	}
	for name, value := range m.Metadata {
		if name == "" || len(name) > postmarkMetaName || len(value) > postmarkMetaValue {
			return errors.New("metadata has up to 20 characters in a name and 80 in a value")
		}
	}
	for _, h := range m.Headers {
		if !postmarkHeader.MatchString(h.Name) || strings.ContainsAny(h.Value, "\r\n") {
			return errors.New("a header is not one")
		}
	}
	return nil
}

// postmarkErrors are the documented ones that POST /email has:
// https://postmarkapp.com/developer/api/overview#error-codes
var postmarkErrors = func() map[string]mailError {
	all := make(map[string]mailError)
	for _, e := range []mailError{
		{401, "10", "The Server Token you provided is missing or not valid."},
		{503, "100", "Down for maintenance."},
		{422, "300", "The email request is not valid."},
		{422, "400", "The sender signature was not found."},
		{422, "401", "The sender signature is not confirmed."},
		{422, "402", "The JSON is not valid."},
		{422, "403", "The JSON is not what this expects."},
		{422, "405", "This server may not send."},
		{422, "406", "The recipient is inactive: it bounced for good, complained, or was deactivated."},
		{422, "409", "Want Accept and Content-Type application/json."},
		{422, "411", "An attachment's type is forbidden."},
		{422, "412", "The account is pending."},
		{422, "413", "The account may not send."},
		{429, "429", "Too many requests."},
		{422, "1235", "There is no such message stream on this server."},
	} {
		all[e.code] = e
	}
	return all
}()

// postmarkError is the documented one of that code; text is instead of its own.
func postmarkError(code, text string) *mailError {
	e := postmarkErrors[code]
	if text != "" {
		e.text = text
	}
	return &e
}

func failPostmark(w http.ResponseWriter, e mailError) {
	code, err := strconv.Atoi(e.code)
	if err != nil {
		w.WriteHeader(e.status) // those that come from before Postmark's API have no code
		return
	}
	writeJSON(w, e.status, map[string]any{"ErrorCode": code, "Message": e.text})
}
