package dedupe

import (
	"context"
	"fmt"

	"github.com/stormpost/stormpost/internal/message"
)

// Cancel implements httpapi.Ledger.
func (l *Ledger) Cancel(ctx context.Context, tenant int32, id message.ID) (*message.View, error) {
	v, err := l.Message(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	if v.Position == 0 {
		if v.State != message.StateHeld && v.State != message.StateCanceled {
			return nil, fmt.Errorf("cancel: %w", message.ErrTooLate)
		}
		if err := l.cancelParked(ctx, id); err != nil {
			return nil, err
		}
		// It may have been submitted again, and entered, meanwhile.
		if v, err = l.Message(ctx, tenant, id); err != nil || v.Position == 0 {
			return v, err
		}
	}
	if err := l.cancel(ctx, v.Position); err != nil {
		return nil, err
	}
	return l.Message(ctx, tenant, id)
}

func (l *Ledger) cancel(ctx context.Context, p message.Position) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Deadline)
	defer cancel()
	worker, err := l.processID(ctx)
	if err != nil {
		return unavailable("cancel", err)
	}
	var canceled bool
	if err := l.pool.QueryRow(ctx, `select cancel_message($1, $2)`, int64(p), worker).Scan(&canceled); err != nil {
		return unavailable("cancel", err)
	}
	if !canceled {
		return fmt.Errorf("cancel: %w", message.ErrTooLate)
	}
	return nil
}
