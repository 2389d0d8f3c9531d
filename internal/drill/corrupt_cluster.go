package drill

import (
	"context"
	"fmt"
	"time"
)

var corruptCluster = Drill{
	Name: "corrupt-cluster",
	Outage: `Batch, 2020-11-21: the push pipeline's messaging data was corrupt; 8 h 6 min without a
campaign, transactional or trigger message, and customers were told not to resubmit.`,
	About: `One Kafka node's data is overwritten and the node killed; then the whole cluster is wiped
and another starts in its place. Accepting never stops, transactional messages keep flowing (p99 ≤ 5 s), the
first delivery by the new cluster comes within 60 s, and resubmitting everything doubles nothing.`,
	Needs: Needs{Kafka: true},
	Run: func(ctx context.Context, s *Stage) error {
		s.Evidence("transactional_p99_limit_s", 5.0)
		if err := s.At(ctx, 0.2); err != nil {
			return err
		}
		before := s.Kafka.ClusterID()
		s.Evidence("cluster_before", before)
		written, err := s.Kafka.Overwrite(1, s.opt.Seed)
		if err != nil {
			return err
		}
		s.Evidence("bytes_overwritten", written)
		s.Harm("%d bytes of Kafka node 1 are overwritten, and it is killed", written)
		if err := s.Kafka.Kill(1); err != nil {
			return err
		}
		if err := s.At(ctx, 0.4); err != nil {
			return err
		}
		wiped := time.Now()
		s.Harm("the Kafka cluster is wiped")
		if err := s.Kafka.Wipe(ctx); err != nil {
			return err
		}
		after := s.Kafka.ClusterID()
		s.Evidence("cluster_after", after)
		s.Bit(written > 0 && after != before)
		s.Healed("another cluster is up, %s for %s", after, before)
		// An offset that the new cluster has committed is of a message that came
		// by it: there are no others in it.
		first := map[string]float64{}
		var failed error
		s.Until(ctx, 90*time.Second, func() bool {
			cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			sums, err := s.Kafka.Committed(cctx, s.Prefix+".delivery")
			cancel()
			if failed = err; err != nil {
				return false
			}
			for topic, n := range sums {
				if n > 0 && first[topic] == 0 {
					first[topic] = time.Since(wiped).Seconds()
					s.Event("first delivery by the new cluster's %s, %.1f s after the wipe", topic, first[topic])
				}
			}
			return len(first) == 6
		})
		s.Evidence("first_delivery_after_wipe_s", first)
		if failed != nil {
			s.Event("the new cluster's offsets could not be read: %v", failed)
		}
		soonest := 1e9
		for _, t := range first {
			soonest = min(soonest, t)
		}
		if soonest > 60 {
			s.Broke("nothing was delivered by the new cluster within 60 s: %s", fmt.Sprint(first))
		}
		if n := s.load.refused.count(); n > 0 {
			s.Broke("requests were answered 503 in %d seconds, although the ledger was there", n)
		}
		return s.At(ctx, 1)
	},
}
