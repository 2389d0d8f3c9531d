package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/stormpost/stormpost/internal/keyring"
	"github.com/stormpost/stormpost/internal/message"
)

type laneView struct {
	Lane      string   `json:"lane" example:"transactional.email" doc:"CLASS.CHANNEL."`
	Class     string   `json:"class" enum:"transactional,trigger,campaign" doc:"Its class."`
	Channel   string   `json:"channel" enum:"email,push" doc:"Its channel."`
	Depth     int64    `json:"depth" doc:"Messages that are ready to be sent."`
	Journaled *int64   `json:"journaled" nullable:"true" doc:"Messages that only Kafka's journal has, and that are still to be entered; null while that isn't known."`
	Waiting   int64    `json:"waiting" doc:"Messages that are scheduled, or between attempts."`
	OldestAge float64  `json:"oldest_age_seconds" doc:"Age of the oldest that is ready."`
	InRate    float64  `json:"in_rate" doc:"Messages accepted a second, but for those out of the journal, over the last 20 seconds or since attempts began to be made."`
	OutRate   float64  `json:"out_rate" doc:"First attempts made a second, over the last 20 seconds or since attempts began to be made."`
	ETA       *float64 `json:"eta_seconds" nullable:"true" doc:"Until none is ready or journaled, at these rates; null for never, or while it isn't known what is journaled."`
}

func (a *api) registerLanes() {
	huma.Register(a.huma, a.operation(huma.Operation{
		OperationID: "list-lanes", Method: http.MethodGet, Path: "/v1/lanes", Tags: []string{"Operate"},
		Summary: "See how each lane is doing, most urgent first", Security: anyOf(keyring.Operator),
	}, page[laneView]{Items: []laneView{laneViewOf(message.LaneView{
		Lane:  message.Lane{Class: message.Transactional, Channel: message.ChannelEmail},
		Depth: 1200, OldestAge: 1500 * time.Millisecond, InRate: 300, OutRate: 900, ETA: 2 * time.Second,
	})}}), a.listLanes)
}

func (a *api) listLanes(ctx context.Context, _ *struct{}) (*output[page[laneView]], error) {
	lanes, err := a.Ledger.Lanes(ctx)
	if err != nil {
		return nil, a.problem(ctx, err)
	}
	out := page[laneView]{Items: make([]laneView, len(lanes))}
	for i, l := range lanes {
		out.Items[i] = laneViewOf(l)
	}
	return &output[page[laneView]]{out}, nil
}

func laneViewOf(l message.LaneView) laneView {
	out := laneView{
		Lane: l.Lane.String(), Class: l.Lane.Class.String(), Channel: l.Lane.Channel.String(), Depth: l.Depth,
		Waiting: l.Waiting, OldestAge: l.OldestAge.Seconds(), InRate: l.InRate, OutRate: l.OutRate,
	}
	if l.Journaled >= 0 {
		out.Journaled = new(l.Journaled)
	}
	if l.ETA >= 0 {
		out.ETA = new(l.ETA.Seconds())
	}
	return out
}
