package incident

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/stormpost/stormpost/internal/message"
)

// List is one page of incidents, newest first: of state open, resolved or, if
// that is empty, of both. A cursor that is not ours is message.FieldErrors.
func (e *Engine) List(state, cursor string, limit int) (message.Page[Incident], error) {
	var page message.Page[Incident]
	at, id := int64(0), ""
	if cursor != "" {
		us, after, ok := strings.Cut(cursor, "-")
		n, err := strconv.ParseInt(us, 10, 64)
		if !ok || err != nil || !strings.HasPrefix(after, "inc_") {
			return page, message.FieldErrors{{Field: "cursor", Problem: "is not one of ours"}}
		}
		at, id = n, after
	}
	e.mu.Lock()
	page.Items = sorted(e.all(func(i *Incident) bool {
		us := i.OpenedAt.UnixMicro()
		return (state == "" || state == i.State()) && (id == "" || us < at || us == at && i.ID < id)
	}))
	e.mu.Unlock()
	if len(page.Items) > limit {
		page.Items = page.Items[:limit]
		last := page.Items[limit-1]
		page.Next = fmt.Sprintf("%d-%s", last.OpenedAt.UnixMicro(), last.ID)
	}
	return page, nil
}

// sorted is newest first.
func sorted(all []Incident) []Incident {
	slices.SortFunc(all, func(a, b Incident) int {
		return cmp.Or(cmp.Compare(b.OpenedAt.UnixMicro(), a.OpenedAt.UnixMicro()), cmp.Compare(b.ID, a.ID))
	})
	return all
}
