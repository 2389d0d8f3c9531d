package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Config configures StartAll. Dir is required; an empty address is a free port
// of 127.0.0.1.
type Config struct {
	Dir        string // keeps taken.jsonl and service-account.json
	SMTPAddr   string
	FCMAddr    string
	APNSAddr   string
	WebAddr    string // Web Push's
	TokenAddr  string
	SESAddr    string
	ResendAddr string
	// PostmarkAddr and SendGridAddr are theirs.
	PostmarkAddr, SendGridAddr string
	InboxAddr                  string
	Project                    string // FCM's; default stormpost-dev
	Store                      StoreOptions
	Clock                      func() time.Time
	Log                        *slog.Logger
}

// What the simulators of APIs for email that StartAll starts want to see. They
// open nothing but these.
const (
	SESRegion   = "eu-west-1"
	SESKeyID    = "AKIASIMULATED"
	SESSecret   = "simulated-secret"
	ResendKey   = "re_simulated"
	PostmarkKey = "simulated-server-token"
	SendGridKey = "SG.simulated"
)

// Sims are all simulators over one store, and the inbox page.
type Sims struct {
	Store *Store
	SMTP  *SMTPServer
	FCM   *FCMServer
	APNS  *APNSServer
	Web   *WebPushServer
	SES   *SESServer
	// Resend and SES want the keys of ResendKey, SESKeyID and SESSecret.
	Resend   *ResendServer
	Postmark *PostmarkServer // wants PostmarkKey
	SendGrid *SendGridServer // wants SendGridKey
	Token    *TokenServer
	// InboxURL is the inbox's base URL, without a trailing slash.
	InboxURL string
	// ServiceAccountFile is for the FCM provider. It is new at each start.
	ServiceAccountFile string

	closers []func() error
}

// StartAll starts everything and serves until Close. ctx is for starting only.
func StartAll(ctx context.Context, c Config) (_ *Sims, err error) {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sims{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start simulators: %w", err), s.Close())
		}
	}()
	if s.Store, err = OpenStore(c.Dir, c.Store); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.Store.Close)
	if s.Token, err = StartToken(ctx, TokenOptions{Addr: c.TokenAddr, Project: c.Project, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.Token.Close)
	s.ServiceAccountFile = filepath.Join(c.Dir, "service-account.json")
	if err = os.WriteFile(s.ServiceAccountFile, s.Token.ServiceAccount(), 0o600); err != nil {
		return nil, err
	}
	if s.FCM, err = StartFCM(ctx, FCMOptions{Addr: c.FCMAddr, Store: s.Store, Tokens: s.Token, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.FCM.Close)
	if s.APNS, err = StartAPNS(ctx, APNSOptions{Addr: c.APNSAddr, Store: s.Store, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.APNS.Close)
	if s.Web, err = StartWebPush(ctx, WebPushOptions{Addr: c.WebAddr, Store: s.Store, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.Web.Close)
	if s.SMTP, err = StartSMTP(ctx, SMTPOptions{Addr: c.SMTPAddr, Store: s.Store, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.SMTP.Close)
	if s.SES, err = StartSES(ctx, SESOptions{
		Addr: c.SESAddr, Store: s.Store, AccessKeyID: SESKeyID, SecretKey: SESSecret, Region: SESRegion, Clock: c.Clock, Log: c.Log,
	}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.SES.Close)
	if s.Resend, err = StartResend(ctx, ResendOptions{Addr: c.ResendAddr, Store: s.Store, Key: ResendKey, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.Resend.Close)
	if s.Postmark, err = StartPostmark(ctx, MailOptions{Addr: c.PostmarkAddr, Store: s.Store, Key: PostmarkKey, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.Postmark.Close)
	if s.SendGrid, err = StartSendGrid(ctx, MailOptions{Addr: c.SendGridAddr, Store: s.Store, Key: SendGridKey, Clock: c.Clock, Log: c.Log}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.SendGrid.Close)

	inbox := NewInbox(s.Store, map[string]*Faults{
		"smtp": s.SMTP.Faults, "ses": s.SES.Faults, "resend": s.Resend.Faults, "fcm": s.FCM.Faults, "token": s.Token.Faults,
		"postmark": s.Postmark.Faults, "sendgrid": s.SendGrid.Faults, "apns": s.APNS.Faults, "webpush": s.Web.Faults,
	}, c.Log)
	server, err := serveHTTP(ctx, c.InboxAddr, nil, nil, inbox, c.Log)
	if err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	s.closers = append(s.closers, server.Close)
	s.InboxURL = server.URL()
	return s, nil
}

// Close stops the servers, then the store.
func (s *Sims) Close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}
