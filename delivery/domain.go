package delivery

import (
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

const (
	// hungAfter is how long none of a domain's hand-overs was answered when it
	// counts as hung, and slowAfter what a slow answer took.
	hungAfter = time.Second
	slowAfter = 10 * time.Second
	// aroundFor is for how long a domain counts as there after its last message, or,
	// where it is how a provider does, its last answer.
	aroundFor = time.Minute
	// A domain's limit is forgotten when nothing was cut for forgetAfter, or when
	// more than mostDomains are remembered.
	forgetAfter = 10 * time.Minute
	mostDomains = 1000
)

// domains shares the senders that a lane has for one provider between the
// domains of its recipients, or their push services: so one that hangs, or defers, leaves room for the
// others. While there is mail for one domain only, it has them all.
//
// A domain in trouble of its own has a limit, which is halved when an answer is
// bad and raised by one when it is good. What finds no room is set aside.
type domains struct {
	places int // senders, or the slots that the lane can get if they are fewer

	mu    sync.Mutex
	held  int                // places, of all domains
	of    map[string]*domain // those with a message in hand, or a limit
	seen  [2]sighting        // the last two domains, the newest first
	freed chan struct{}      // closed when somebody leaves; nil: nobody waits
}

type sighting struct {
	name string
	at   time.Time
}

// domain is one domain's part.
type domain struct {
	held  int       // messages with senders
	under int       // of which are handed over and not answered
	since time.Time // when the last answer came, or the first of those went
	limit int       // of held, while it is in trouble; else 0
	cut   time.Time // when limit was halved last
	full  time.Time // since when it has no room; zero: it had a good answer since
}

func newDomains(senders, slots int) *domains {
	if slots > 0 {
		senders = min(senders, slots)
	}
	return &domains{places: senders, of: make(map[string]*domain)}
}

// domainOf is the domain of a recipient, or its push service if a subscription
// names one, or nothing.
func domainOf(content *message.Content, index int) string {
	if content.Push != nil {
		u, err := url.Parse(content.Push.To.Endpoint)
		if err != nil {
			return ""
		}
		return strings.ToLower(u.Host)
	}
	if content.Email == nil {
		return ""
	}
	for _, list := range [][]string{content.Email.To, content.Email.Cc, content.Email.Bcc} {
		if index < len(list) {
			_, name, _ := strings.Cut(list[index][max(0, strings.LastIndexByte(list[index], '@')):], "@")
			name, _, _ = strings.Cut(name, ">")
			return strings.ToLower(strings.TrimSpace(name))
		}
		index -= len(list)
	}
	return ""
}

// enter takes a place for a message to name, which leave gives back. Without one,
// it may soon be had, when freed is closed; or, if freed is nil, the domain has
// been without for so long.
func (d *domains) enter(name string) (ok bool, freed <-chan struct{}, full time.Duration) {
	if name == "" {
		return true, nil, 0
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.get(name)
	if e.held == 0 && now.Sub(e.cut) > forgetAfter {
		e.limit, e.full = 0, time.Time{}
	}
	others := d.see(name, now) || !e.full.IsZero() // in trouble it is alone with it
	room, steady := d.room(e, others, now)
	switch {
	case e.held < room:
		e.held++
		d.held++
		return true, nil, 0
	case steady:
		if d.freed == nil {
			d.freed = make(chan struct{})
		}
		return false, d.freed, 0
	}
	if e.full.IsZero() {
		e.full = now
	}
	return false, nil, now.Sub(e.full)
}

// push takes a place for a message to name, whether there is room or not.
func (d *domains) push(name string) {
	if name == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.get(name).held++
	d.held++
}

func (d *domains) get(name string) *domain {
	e := d.of[name]
	if e == nil {
		e = &domain{}
		d.of[name] = e
	}
	return e
}

// room is how many of the places e may have; steady, that it is doing well. One
// that hangs is taken for one that does well while all places are taken: then it
// may be the provider that hangs, and nobody else's mail could go.
func (d *domains) room(e *domain, others bool, now time.Time) (n int, steady bool) {
	switch {
	case !others:
		return math.MaxInt, true
	case e.limit > 0:
		return e.limit, false
	case d.held < d.places && e.under > 0 && now.Sub(e.since) > hungAfter:
		return max(1, d.places/4), false
	}
	return max(1, d.places*3/4), true
}

// see notes a message to name, and says whether others were there lately.
func (d *domains) see(name string, now time.Time) (others bool) {
	if d.seen[0].name != name {
		d.seen[1] = d.seen[0]
		d.seen[0].name = name
	}
	d.seen[0].at = now
	return d.seen[1].name != "" && now.Sub(d.seen[1].at) < aroundFor
}

// leave gives a place back.
func (d *domains) leave(name string) {
	if name == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.of[name]
	e.held--
	d.held--
	if e.held == 0 && (e.limit == 0 || len(d.of) > mostDomains && !d.sweep()) {
		delete(d.of, name)
	}
	if d.freed != nil {
		close(d.freed)
		d.freed = nil
	}
}

// sweep forgets a domain whose limit is old, and says whether it found one among
// some.
func (d *domains) sweep() bool {
	looks := 16
	for name, e := range d.of {
		if e.held == 0 && time.Since(e.cut) > forgetAfter {
			delete(d.of, name)
			return true
		}
		if looks--; looks == 0 {
			break
		}
	}
	return false
}

// begin notes that a message which has a place is handed over, until ended.
func (d *domains) begin(name string) {
	if name == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.of[name]
	if e.under == 0 {
		e.since = time.Now()
	}
	e.under++
}

// ended notes the answer, for which it took so long. own says that it is bad, and
// the domain's own trouble; those that were handed over together count as one.
func (d *domains) ended(name string, took time.Duration, good, own bool) {
	if name == "" {
		return
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.of[name]
	e.under--
	e.since = now
	switch {
	case own && now.Add(-took).After(e.cut):
		if e.limit == 0 {
			e.limit = min(e.held, d.places)
		}
		e.limit, e.cut = max(1, e.limit/2), now
	case good:
		e.full = time.Time{}
		if e.limit > 0 {
			e.limit++
		}
		if e.limit > d.places*3/4 {
			e.limit = 0
		}
	}
}

// mostRecent is how many domains' last answers tell how a provider is doing.
const mostRecent = 32

// recent is how a provider did lately, by domain.
type recent struct {
	last [mostRecent]struct {
		sighting
		good bool
	}
}

// note keeps a domain's last answer, in the place of the oldest one.
func (r *recent) note(name string, good bool, now time.Time) {
	at := 0
	for i := range r.last {
		if r.last[i].name == name {
			at = i
			break
		}
		if r.last[i].at.Before(r.last[at].at) {
			at = i
		}
	}
	r.last[at].name, r.last[at].at, r.last[at].good = name, now, good
}

// others says whether there are other domains, and nine of ten of them do well.
func (r *recent) others(name string, now time.Time) bool {
	good, bad := 0, 0
	for i := range r.last {
		switch l := &r.last[i]; {
		case l.name == "" || l.name == name || now.Sub(l.at) > aroundFor:
		case l.good:
			good++
		default:
			bad++
		}
	}
	return good > 0 && good >= 9*bad
}
