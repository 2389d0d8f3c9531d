package drill

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// trouble is what a link does to what passes.
type trouble string

const (
	passing  trouble = ""
	refusing trouble = "refuses connections and cuts those that are there"
	halfOpen trouble = "keeps connections open, and nothing passes"
	lagging  trouble = "lets everything pass late"
	answers  trouble = "passes what is asked, and cuts the connection instead of answering"
)

// link is a TCP proxy between the processes and a store.
type link struct {
	l    net.Listener
	wg   sync.WaitGroup
	hits atomic.Int64 // connections and reads that had trouble

	mu    sync.Mutex
	to    string // empty: nobody is there
	mode  trouble
	lag   time.Duration
	turn  chan struct{} // closed when mode changes
	conns map[net.Conn]bool
}

// newLink listens on loopback. It leads nowhere before lead.
func newLink(ctx context.Context) (*link, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &link{l: l, turn: make(chan struct{}), conns: make(map[net.Conn]bool)}
	p.wg.Go(p.accept)
	return p, nil
}

func (p *link) addr() string { return p.l.Addr().String() }

func (p *link) lead(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
}

// dsn is a connection string, which the link leads to from now on, by the link.
func (p *link) dsn(direct string) (string, error) {
	u, err := url.Parse(direct)
	if err != nil || u.Host == "" {
		return "", errors.New("want postgres://USER:PASSWORD@HOST/DATABASE")
	}
	to := u.Host
	if u.Port() == "" {
		to = net.JoinHostPort(u.Hostname(), "5432")
	}
	p.lead(to)
	u.Host = p.addr()
	return u.String(), nil
}

// set begins a trouble, or ends it. What hung until then is cut: its bytes are
// lost.
func (p *link) set(mode trouble, lag time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mode == refusing || p.mode == halfOpen {
		for c := range p.conns {
			p.hits.Add(1)
			c.Close()
		}
	}
	p.mode, p.lag = mode, lag
	close(p.turn)
	p.turn = make(chan struct{})
}

func (p *link) close() error {
	err := p.l.Close()
	p.set(refusing, 0)
	p.wg.Wait()
	return err
}

func (p *link) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		mode, to := p.mode, p.to
		if mode == refusing || to == "" {
			p.hits.Add(1)
			c.Close()
		} else {
			p.conns[c] = true
			p.wg.Go(func() { p.serve(c, to) })
		}
		p.mu.Unlock()
	}
}

func (p *link) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *link) serve(c net.Conn, to string) {
	defer p.drop(c)
	s, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return
	}
	defer p.drop(s)
	p.mu.Lock()
	if p.mode == refusing { // it began meanwhile, and didn't see this one
		p.mu.Unlock()
		return
	}
	p.conns[s] = true
	p.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { p.copy(s, c, false) })
	p.copy(c, s, true)
	wg.Wait()
}

// copy passes bytes on until either side ends; answer says in which direction.
func (p *link) copy(to, from net.Conn, answer bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		mode, lag, turn := p.mode, p.lag, p.turn
		p.mu.Unlock()
		if mode != passing && (mode != answers || answer) {
			p.hits.Add(1)
		}
		switch {
		case mode == halfOpen:
			<-turn
			return
		case mode == refusing, mode == answers && answer:
			return
		case mode == lagging:
			timer := time.NewTimer(lag)
			select {
			case <-timer.C:
			case <-turn:
				timer.Stop()
			}
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// links are a stage's.
type links struct {
	postgres *link
	kafka    []*link // by node; none to a Kafka that was given
}

// linkKafka makes the links to Kafka's nodes, and says how these are reached.
func (s *Stage) linkKafka(ctx context.Context, nodes int) (told []string, err error) {
	for range nodes {
		if !s.drill.Shape.Linked {
			return nil, nil
		}
		l, err := newLink(ctx)
		if err != nil {
			return nil, err
		}
		s.closers = append(s.closers, l.close)
		s.links.kafka = append(s.links.kafka, l)
		told = append(told, l.addr())
	}
	return told, nil
}

// reach is how the processes reach the stores.
func (s *Stage) reach() (dsn string, brokers []string, err error) {
	if !s.drill.Shape.Linked {
		return s.dsn, s.brokers, nil
	}
	l, err := newLink(context.Background())
	if err != nil {
		return "", nil, err
	}
	s.closers = append(s.closers, l.close)
	s.links.postgres = l
	if dsn, err = l.dsn(s.dsn); err != nil {
		return "", nil, err
	}
	if s.Kafka == nil {
		return dsn, s.brokers, nil
	}
	for i, k := range s.links.kafka {
		k.lead(s.brokers[i])
		brokers = append(brokers, k.addr())
	}
	return dsn, brokers, nil
}
