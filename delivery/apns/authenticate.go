package apns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/stormpost/stormpost/delivery"
	"github.com/stormpost/stormpost/internal/overhttp"
)

var _ delivery.Authenticator = (*Provider)(nil)

// Authenticate asks APNs for what it must refuse, a notification to no device:
// with a good provider token it finds fault with the device token instead.
func (p *Provider) Authenticate(ctx context.Context) error {
	for try := 0; ; try++ {
		use, err := p.cfg.Token.Use(ctx)
		if err != nil {
			return err
		}
		status, reason, err := p.ask(ctx, use.Value())
		switch {
		case err != nil:
			return fmt.Errorf("APNs %w: %s", delivery.ErrUnreachable, overhttp.Line(err.Error(), use.Value()))
		case status == http.StatusBadRequest && reason == "BadDeviceToken":
			use.Accepted()
			return nil
		case status == http.StatusForbidden && reason == unrelatedKey:
			if try == 0 {
				p.client.HTTP().CloseIdleConnections()
				continue
			}
		case status == http.StatusForbidden && slices.Contains(tokenReasons, reason):
			use.Rejected(reason)
			if try == 0 {
				continue
			}
		}
		return errors.New("APNs answered " + overhttp.Line(fmt.Sprintf("%d %s", status, reason), use.Value()))
	}
}

func (p *Provider) ask(ctx context.Context, token string) (status int, reason string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, overhttp.Join(p.base, "3", "device", "00").String(), strings.NewReader(`{"aps":{}}`))
	if err != nil {
		return 0, "", err
	}
	req.Header = http.Header{
		"Authorization": {"bearer " + token}, "Content-Type": {"application/json"},
		"Apns-Topic": {p.cfg.Topic}, "Apns-Push-Type": {"background"}, "Apns-Priority": {"5"}, "Apns-Expiration": {"0"},
	}
	resp, err := p.client.HTTP().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, "", err
	}
	var b struct{ Reason string }
	if json.Unmarshal(raw, &b) != nil {
		b.Reason = ""
	}
	return resp.StatusCode, b.Reason, nil
}
