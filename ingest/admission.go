package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// AdmissionConfig is how much is taken. Zero is no limit.
type AdmissionConfig struct {
	// Backlog is how many messages of a class and of more urgent ones may be ready
	// and unsent: at half of it no campaign is taken, at three quarters no trigger, and
	// at all of it nothing transactional. What is less urgent doesn't count.
	Backlog int64
	// TenantBacklog is how many of those one tenant may have in one lane.
	TenantBacklog int64
	// TenantRate is how many messages a second one tenant may submit to one
	// process, over all lanes; in one burst twice that.
	TenantRate float64
	Log        *slog.Logger     // nil: none
	Now        func() time.Time // time.Now when nil
}

// Backlogs tells how much is still to go: the ledger.
type Backlogs interface {
	// Backlogs is every lane's. Tenants are counted only in a lane with at least
	// so many, those with nothing to go left out.
	Backlogs(ctx context.Context, least int64) ([]message.Backlog, error)
}

// Busy refuses a request that may come again later. Nothing of it was kept.
type Busy struct {
	Policy     string // tenant-rate, tenant-backlog or backlog
	Quota      int64  // what the policy allows
	Window     time.Duration
	RetryAfter time.Duration
	Detail     string // for people
}

func (b *Busy) Error() string { return b.Detail }

const (
	// admissionEvery is how often backlogs are counted, at most for a tenth of
	// the time; in between what this process accepted is added.
	admissionEvery = 2 * time.Second
	// admissionStale is how old a count may be: with the ledger away nobody is
	// refused for a backlog that nobody knows.
	admissionStale = 30 * time.Second
	// busyLeast and busyMost bound what Retry-After says about a backlog.
	busyLeast, busyMost = 5 * time.Second, time.Minute
	// mostBuckets bounds the tenants whose rate is remembered.
	mostBuckets = 100_000
)

// Admission refuses what is too much before any store is asked. It is safe for
// concurrent use.
type Admission struct {
	cfg      AdmissionConfig
	backlogs Backlogs

	mu      sync.Mutex
	at      time.Time // of the count
	lanes   map[message.Lane]message.Backlog
	buckets map[int32]*bucket
}

// bucket is a tenant's leave to submit.
type bucket struct {
	tokens float64
	at     time.Time
}

// NewAdmission makes an Admission. Run keeps its counts.
func NewAdmission(backlogs Backlogs, cfg AdmissionConfig) *Admission {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Admission{cfg: cfg, backlogs: backlogs, buckets: make(map[int32]*bucket)}
}

// Run counts until ctx ends.
func (a *Admission) Run(ctx context.Context) {
	if a.cfg.Backlog == 0 && a.cfg.TenantBacklog == 0 {
		<-ctx.Done()
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		err := a.Count(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			a.cfg.Log.Warn("backlogs can't be counted; nobody is refused for one", "error", err)
		}
		failing = err != nil
		timer.Reset(max(admissionEvery, 10*time.Since(began)))
	}
}

// Count asks for the backlogs once.
func (a *Admission) Count(ctx context.Context) error {
	least := a.cfg.TenantBacklog
	if least == 0 {
		least = math.MaxInt64
	}
	all, err := a.backlogs.Backlogs(ctx, least)
	if err != nil {
		return fmt.Errorf("count backlogs: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.lanes = a.cfg.Now(), make(map[message.Lane]message.Backlog, len(all))
	for _, b := range all {
		if b.Tenants == nil {
			b.Tenants = make(map[int32]int64)
		}
		a.lanes[b.Lane] = b
	}
	return nil
}

// admit takes n messages of a tenant into the counts, or says why not.
func (a *Admission) admit(tenant int32, l message.Lane, n int) *Busy {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	if b := a.full(tenant, l, now); b != nil {
		return b
	}
	if b := a.fast(tenant, n, now); b != nil {
		return b
	}
	if lane, ok := a.lanes[l]; ok {
		lane.Total += int64(n)
		if _, counted := lane.Tenants[tenant]; counted {
			lane.Tenants[tenant] += int64(n)
		}
		a.lanes[l] = lane
	}
	return nil
}

// full says whether the backlog is too large for more of this.
func (a *Admission) full(tenant int32, l message.Lane, now time.Time) *Busy {
	if a.at.IsZero() || now.Sub(a.at) > admissionStale {
		return nil
	}
	lane := a.lanes[l]
	if most := a.cfg.TenantBacklog; most > 0 && lane.Tenants[tenant] >= most {
		return &Busy{
			Policy: "tenant-backlog", Quota: most, RetryAfter: drained(lane.Tenants[tenant]-most, lane.OutRate),
			Detail: fmt.Sprintf("Your backlog in lane %s has reached %d messages. Nothing was kept.", l, most),
		}
	}
	most := a.cfg.Backlog
	switch l.Class {
	case message.Campaign:
		most /= 2
	case message.Trigger:
		most = most / 4 * 3
	}
	if a.cfg.Backlog == 0 {
		return nil
	}
	var total int64
	var speed float64
	for other, b := range a.lanes {
		if other.Class <= l.Class {
			total += b.Total
			speed += b.OutRate
		}
	}
	if total < most {
		return nil
	}
	return &Busy{
		Policy: "backlog", Quota: most, RetryAfter: drained(total-most, speed),
		Detail: fmt.Sprintf("The backlog is too large for more of class %s. Nothing was kept.", l.Class),
	}
}

// drained is after how long a backlog may have shrunk by over messages.
func drained(over int64, speed float64) time.Duration {
	if speed <= 0 {
		return busyMost
	}
	return max(busyLeast, min(busyMost, time.Duration(float64(over)/speed*float64(time.Second))))
}

// fast says whether a tenant submits too fast. A submission of more than a
// burst is taken when the bucket is full, and paid for afterwards.
func (a *Admission) fast(tenant int32, n int, now time.Time) *Busy {
	rate := a.cfg.TenantRate
	if rate <= 0 {
		return nil
	}
	burst := max(1, 2*rate)
	b := a.buckets[tenant]
	if b == nil {
		if len(a.buckets) >= mostBuckets {
			clear(a.buckets) // each begins anew, with a full one
		}
		b = &bucket{tokens: burst, at: now}
		a.buckets[tenant] = b
	}
	b.tokens = min(burst, b.tokens+now.Sub(b.at).Seconds()*rate)
	b.at = now
	if need := min(float64(n), burst); b.tokens < need {
		return &Busy{
			Policy: "tenant-rate", Quota: int64(math.Ceil(rate)), Window: time.Second,
			RetryAfter: time.Duration((need - b.tokens) / rate * float64(time.Second)),
			Detail:     "You submit faster than is allowed. Nothing was kept.",
		}
	}
	b.tokens -= float64(n)
	return nil
}

// admit refuses with a *Busy what is too much. A request whose key is known has
// its answer all the same, as far as few enough ask at once.
func (s *Service) admit(ctx context.Context, r Request, sub *message.Submission) (*Accepted, error) {
	if s.cfg.Admission == nil {
		return nil, nil
	}
	busy := s.cfg.Admission.admit(sub.Tenant, sub.Lane, len(sub.Recipients))
	if busy == nil {
		return nil, nil
	}
	if r.Key != "" {
		select {
		case s.lookups <- struct{}{}:
			defer func() { <-s.lookups }()
			if a, err := s.repeatOr(ctx, r, sub, time.Time{}, busy); err == nil || errors.Is(err, message.ErrKeyReused) {
				return a, err
			}
		default:
		}
	}
	return nil, busy
}
