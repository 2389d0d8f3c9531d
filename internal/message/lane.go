// Package message holds the words every other package speaks: messages, lanes,
// positions, ids, outcomes and states. It imports the standard library only.
package message

import "fmt"

// Class is how urgent a message is. The zero Class is invalid.
type Class uint8

// The classes, most urgent first.
const (
	Transactional Class = iota + 1
	Trigger
	Campaign
)

var classNames = [...]string{Transactional: "transactional", Trigger: "trigger", Campaign: "campaign"}

func (c Class) String() string {
	if c < Transactional || c > Campaign {
		return fmt.Sprintf("class(%d)", c)
	}
	return classNames[c]
}

// ParseClass reads a class by its name.
func ParseClass(s string) (Class, error) {
	for c := Transactional; c <= Campaign; c++ {
		if classNames[c] == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("unknown class %q: want transactional, trigger or campaign", s)
}

// Channel is the way by which a message reaches its recipient. The zero
// Channel is invalid.
type Channel uint8

// The channels.
const (
	ChannelEmail Channel = iota + 1
	ChannelPush
)

var channelNames = [...]string{ChannelEmail: "email", ChannelPush: "push"}

func (c Channel) String() string {
	if c < ChannelEmail || c > ChannelPush {
		return fmt.Sprintf("channel(%d)", c)
	}
	return channelNames[c]
}

// ParseChannel reads a channel by its name.
func ParseChannel(s string) (Channel, error) {
	for c := ChannelEmail; c <= ChannelPush; c++ {
		if channelNames[c] == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("unknown channel %q: want email or push", s)
}

// Lane is one class of one channel: the unit that has its own Kafka topic, its
// own senders and its own cursor, so that no other lane can delay it.
type Lane struct {
	Class   Class
	Channel Channel
}

// Lanes lists every lane, most urgent first.
func Lanes() []Lane {
	var all []Lane
	for c := Transactional; c <= Campaign; c++ {
		for ch := ChannelEmail; ch <= ChannelPush; ch++ {
			all = append(all, Lane{c, ch})
		}
	}
	return all
}

// Code is the lane's number in the ledger: 4·channel + class, from 5 to 11.
// It never changes, since positions hold it.
func (l Lane) Code() int64 { return int64(l.Channel)<<2 | int64(l.Class) }

// LaneOf is the lane with the given code.
func LaneOf(code int64) Lane { return Lane{Class(code & 3), Channel(code >> 2)} }

// String is CLASS.CHANNEL, as in the lane's topic name.
func (l Lane) String() string { return l.Class.String() + "." + l.Channel.String() }

// ParseLane reads CLASS.CHANNEL.
func ParseLane(s string) (Lane, error) {
	for _, l := range Lanes() {
		if l.String() == s {
			return l, nil
		}
	}
	return Lane{}, fmt.Errorf("unknown lane %q: want CLASS.CHANNEL, as transactional.email", s)
}
