package dedupe

import (
	"context"
	"sync"
)

// mostStreams bounds the cache of stream numbers; beyond it, it starts anew.
const mostStreams = 100_000

type streamName struct {
	tenant int32
	name   string
}

// streamCache remembers the numbers of streams, which never change.
type streamCache struct {
	mu  sync.RWMutex
	ids map[streamName]int64
}

func (c *streamCache) init() { c.ids = make(map[streamName]int64) }

func (c *streamCache) get(k streamName) (int64, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	id, ok := c.ids[k]
	return id, ok
}

func (c *streamCache) put(k streamName, id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ids) >= mostStreams {
		clear(c.ids)
	}
	c.ids[k] = id
}

// streamID is the number of a tenant's stream, which is made, with its counter
// at 0, if it never was.
func (l *Ledger) streamID(ctx context.Context, k streamName) (int64, error) {
	if id, ok := l.streams.get(k); ok {
		return id, nil
	}
	var id int64
	err := l.pool.QueryRow(ctx, `
		with made as (
			insert into stream (tenant, name) values ($1, $2) on conflict (tenant, name) do nothing returning id
		), counted as (
			insert into counter (stream, last) select id, 0 from made
		)
		select id from made
		union all
		select id from stream where tenant = $1 and name = $2
		limit 1`, k.tenant, k.name).Scan(&id)
	if noRows(err) {
		// Another process made it while this statement ran: its row is seen now.
		err = l.pool.QueryRow(ctx, `select id from stream where tenant = $1 and name = $2`, k.tenant, k.name).Scan(&id)
	}
	if err != nil {
		l.room(err)
		return 0, err
	}
	l.streams.put(k, id)
	return id, nil
}
