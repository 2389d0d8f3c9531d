package smtp

import (
	"errors"
	"net"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"
)

// bearer shows an access token by XOAUTH2 or OAUTHBEARER. Both say all at once;
// a server that refuses first explains itself in a challenge, and gives its 535
// after an answer that means nothing.
type bearer struct {
	name, initial string
	dummy         string
	explained     bool
}

var _ sasl.Client = (*bearer)(nil)

// newOAuthBearer is RFC 7628 §3.1.
func newOAuthBearer(user, token, addr string) *bearer {
	// RFC 5801 §4: what would end the name is escaped.
	user = strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user)
	text := "n,a=" + user + ",\x01"
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if _, err := strconv.Atoi(port); err == nil {
			text += "host=" + host + "\x01port=" + port + "\x01"
		}
	}
	return &bearer{name: sasl.OAuthBearer, initial: text + "auth=Bearer " + token + "\x01\x01", dummy: "\x01"}
}

func (b *bearer) Start() (mech string, initial []byte, err error) {
	return b.name, []byte(b.initial), nil
}

func (b *bearer) Next([]byte) ([]byte, error) {
	if b.explained {
		return nil, errors.New("the server asks twice")
	}
	b.explained = true
	return []byte(b.dummy), nil
}
