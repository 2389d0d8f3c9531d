package overhttp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// Config is for one service. Base, Concurrency and ReplyLimit are required.
type Config struct {
	Base        *url.URL // scheme and host to connect to; the rest is not looked at
	Concurrency int      // places at a time
	// MaxConns bounds the connections that take requests; 0 is no bound.
	// Reserve waits for a place on one of them.
	MaxConns int
	HTTP2    bool // speak nothing else
	// Bound says that a connection goes with the credential that was first shown on
	// it: once one is refused, only connections opened from then on are used.
	Bound bool
	// ReplyLimit is the time allowed for the answer, counted from last and over
	// both tries where there are two.
	ReplyLimit time.Duration
	RootCAs    *x509.CertPool // default: the system's
	// Control, if set, is asked before each connect, with the address that the
	// name resolved to, as net.Dialer's is. Then no proxy is used.
	Control func(network, address string, c syscall.RawConn) error
	Now     func() time.Time // default time.Now
}

// Client is the connections to one service, and the slots under its
// concurrency. It is safe for concurrent use.
type Client struct {
	cfg       Config
	transport *http.Transport
	conns     *conns
	slots     chan struct{} // one value for each slot in use
}

// New makes a client. It connects when it is first used. Close must be called.
func New(cfg Config) *Client {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	tr := newTransport(cfg)
	return &Client{
		cfg: cfg, transport: tr,
		conns: &conns{transport: tr, scheme: cfg.Base.Scheme, addr: hostPort(cfg.Base), now: cfg.Now, max: cfg.MaxConns, turn: make(chan struct{}, 1), room: make(chan struct{}, 1)},
		slots: make(chan struct{}, cfg.Concurrency),
	}
}

func newTransport(cfg Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!cfg.HTTP2)
	protocols.SetHTTP2(true) // over TLS alone
	tr := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		Protocols:              protocols,
		DisableCompression:     true,
		IdleConnTimeout:        idleLimit,
		MaxResponseHeaderBytes: 64 << 10,
		// A connection that went silent is found out within half a minute, so
		// that few messages are lost to doubt on it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: handOver},
	}
	if cfg.Control != nil {
		tr.Proxy = nil
		tr.DialContext = (&net.Dialer{Control: cfg.Control}).DialContext
	}
	return tr
}

// HTTP is a client for other requests of the same service, as those for access
// tokens. It follows no redirects: they would carry a credential along.
func (c *Client) HTTP() *http.Client {
	return &http.Client{Transport: c.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Reserve waits for one of Config.Concurrency slots and a place on a
// connection. It returns ctx.Err() when ctx ends.
func (c *Client) Reserve(ctx context.Context) (*Place, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := c.conns.reserve(ctx)
	if err != nil {
		<-c.slots
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return &Place{c: c, conn: conn}, nil
}

// Close ends all connections and goroutines. Calling it again does nothing
// more.
func (c *Client) Close() {
	c.conns.close()
	c.transport.CloseIdleConnections()
}
