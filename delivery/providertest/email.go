package providertest

import (
	"fmt"
	"time"

	"github.com/stormpost/stormpost/internal/message"
)

// Email is the nth of many messages, in whose recipient its number stands.
// change may be nil.
func Email(n int, change func(*message.Email)) *message.Envelope {
	e := &message.Email{
		From: "Shop <shop@sender.example>", To: []string{fmt.Sprintf("r%d@reader.example", n)},
		Subject: "Your code", Text: "Your code is 123456.",
	}
	if change != nil {
		change(e)
	}
	c := &message.Content{Email: e}
	b, err := c.Encode()
	if err != nil {
		panic(err)
	}
	lane := message.Lane{Class: message.Transactional, Channel: message.ChannelEmail}
	return &message.Envelope{
		Position: message.PositionOf(lane, int64(n)+1, 0), ID: message.SubmissionID(message.HashKey(1, fmt.Sprint(n)), message.FingerprintOf(b)).Message(0),
		Attempt: 1, Tenant: 1, Recipient: c.Recipients()[0], Content: c, ExpiresAt: time.Now().Add(time.Hour),
	}
}

// EmailNumber is the n that Email put into the recipient.
func EmailNumber(recipient string) (n int, err error) {
	_, err = fmt.Sscanf(recipient, "r%d@reader.example", &n)
	return n, err
}
