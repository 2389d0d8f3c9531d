package delivery

import (
	"errors"
	"math"

	"github.com/stormpost/stormpost/internal/message"
)

// reading is what a sender finds in an item: content that can be sent, or
// one of the reasons why not.
type reading struct {
	content *message.Content
	stray   string // the record isn't the message that it names: parked, the ledger has the right one
	flaw    string // the message itself can't be sent: claimed and held
}

// misfit says why an item can't be asked for at all, or nothing.
func (l *lane) misfit(it *message.Item) string {
	switch {
	case it.Position.Lane() != l.lane:
		return "its position is not one of lane " + l.name
	case it.Attempt < 1 || it.Attempt > math.MaxInt16:
		return "its attempt is out of range"
	case it.ID.IsSubmission() || it.ID.Index() != it.Position.Index():
		return "its id and its position name different recipients"
	}
	return ""
}

// read finds and checks the content of an item, asking the ledger for what the
// item doesn't carry. An error means that the worker is stopping.
func (s *sender) read(o *offer) (reading, error) {
	raw, carried := o.item.Content, o.item.Content != nil
	if !carried {
		err := s.insist(s.soft, opContent, func() (err error) {
			if raw, err = s.cfg.Ledger.Content(s.soft, o.item.Position); errors.Is(err, message.ErrNotFound) {
				return nil
			}
			return err
		})
		if err != nil {
			return reading{}, err
		}
		if raw == nil {
			return reading{flaw: "its content is gone"}, nil
		}
	}
	if !o.item.ID.Matches(message.FingerprintOf(raw)) {
		const why = "its content is not the one that its id was made from"
		if carried && !o.fed() {
			return reading{stray: why}, nil
		}
		return reading{flaw: why}, nil
	}
	content, err := message.DecodeContent(raw)
	switch {
	case err != nil:
		return reading{flaw: "unreadable content: " + err.Error()}, nil
	case content.Channel() != s.lane.lane.Channel:
		return reading{flaw: "its content is of channel " + content.Channel().String()}, nil
	}
	return reading{content: content}, nil
}
