package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// faultText is a Fault in JSON: durations are text, as "1m30s", and what only
// Go can say is left out.
type faultText struct {
	Step        Step     `json:"step"`
	Do          Action   `json:"do"`
	To          string   `json:"to,omitempty"`
	Subject     string   `json:"subject,omitempty"`
	Probability float64  `json:"probability,omitempty"`
	Times       int      `json:"times,omitempty"`
	For         duration `json:"for,omitzero"`
	Delay       duration `json:"delay,omitzero"`
	Code        int      `json:"code,omitempty"`
	Error       string   `json:"error,omitempty"`
	RetryAfter  duration `json:"retry_after,omitzero"`
}

type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// MarshalJSON leaves Match and Hook out.
func (x Fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(faultText{
		Step: x.Step, Do: x.Do, To: x.To, Subject: x.Subject, Probability: x.Probability, Times: x.Times,
		For: duration(x.For), Delay: duration(x.Delay), Code: x.Code, Error: x.Error, RetryAfter: duration(x.RetryAfter),
	})
}

// UnmarshalJSON refuses unknown members.
func (x *Fault) UnmarshalJSON(b []byte) error {
	var t faultText
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return fmt.Errorf("fault: %w", err)
	}
	*x = Fault{
		Step: t.Step, Do: t.Do, To: t.To, Subject: t.Subject, Probability: t.Probability, Times: t.Times,
		For: time.Duration(t.For), Delay: time.Duration(t.Delay), Code: t.Code, Error: t.Error, RetryAfter: time.Duration(t.RetryAfter),
	}
	return nil
}
