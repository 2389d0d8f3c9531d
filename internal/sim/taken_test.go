package sim

import (
	"strings"
	"testing"

	"github.com/stormpost/stormpost/internal/message"
)

func TestSubjectAndID(t *testing.T) {
	id := message.SubmissionID(message.HashKey(1, "k"), message.FingerprintOf(nil)).Message(3).String()
	for _, tc := range []struct{ name, raw, subject, id string }{
		{"ours", "Subject: Hi\r\nMessage-ID: <" + id + "@mail.example>\r\n\r\nbody", "Hi", id},
		{"any case", "SUBJECT:Hi\r\nmessage-id:<x@y>\r\n\r\n", "Hi", "x@y"},
		{"folded", "Subject: a\r\n long\r\n\tone\r\nMessage-ID:\r\n <x@y>\r\n\r\n", "a long\tone", "x@y"},
		{"encoded", "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\n", "grüße", ""},
		{"badly encoded", "Subject: =?utf-9?q?x?=\r\n\r\n", "=?utf-9?q?x?=", ""},
		{"not in the body", "From: a\r\n\r\nSubject: no\r\nMessage-ID: <no>\r\n", "", ""},
		{"the first", "Subject: one\r\nSubject: two\r\n\r\n", "one", ""},
		{"nearly ours", "Message-ID: <" + id[:len(id)-1] + "@m>\r\n\r\n", "", id[:len(id)-1] + "@m"},
		{"long", "Subject: " + strings.Repeat("x", 997) + "ß\r\n\r\n", strings.Repeat("x", 997), ""},
		{"no header", "hello\r\n", "", ""},
		{"empty", "", "", ""},
		{"cut", "Subject: ab", "ab", ""},
		{"only a CR", strings.Repeat("\r", 3), "", ""},
	} {
		subject, got := subjectAndID([]byte(tc.raw))
		if subject != tc.subject || got != tc.id {
			t.Errorf("%s: got %q, %q, want %q, %q", tc.name, subject, got, tc.subject, tc.id)
		}
	}
}

func FuzzSubjectAndID(f *testing.F) {
	f.Add([]byte("Subject: =?utf-8?b?eA==?=\r\n x\r\nMessage-ID: <a@b>\r\n\r\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) { subjectAndID(raw) })
}
