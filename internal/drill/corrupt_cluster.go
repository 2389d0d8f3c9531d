package drill

import (
	"context"
	"time"
)

var corruptCluster = Drill{
	Name: "corrupt-cluster",
	Outage: `Batch, 2020-11-21: the push pipeline's messaging data was corrupt; 8 h 6 min without a
campaign, transactional or trigger message, and customers were told not to resubmit.`,
	About: `One Kafka node's data is overwritten and the node killed; then the whole cluster is wiped
and another starts in its place. Accepting never stops, transactional messages keep flowing (p99 ≤ 5 s), the
first delivery by the new cluster comes in each class within 60 s of its nodes knowing each other, and
resubmitting everything doubles nothing.`,
	Needs: Needs{Kafka: true},
	Shape: Shape{Keyless: true, Rate: 200, Reachable: true},
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
		node := s.Harm([]string{kafkaAway, clusterChanged}, "%d bytes of Kafka node 1 are overwritten, and it is killed", written)
		if err := s.Kafka.Kill(1); err != nil {
			return err
		}
		node.Bites()
		if err := s.At(ctx, 0.4); err != nil {
			return err
		}
		wiped := time.Now()
		node.Over()
		s.Harm([]string{kafkaAway, clusterChanged}, "the Kafka cluster is wiped").Bites() // it goes first
		if err := s.Kafka.Wipe(ctx); err != nil {
			return err
		}
		after := s.Kafka.ClusterID()
		s.Evidence("cluster_after", after)
		s.Bit(written > 0 && after != before)
		up := time.Now()
		s.Evidence("new_cluster_up_after_wipe_s", up.Sub(wiped).Seconds())
		s.Healed("another cluster is up, %s for %s, %.1f s after the wipe", after, before, up.Sub(wiped).Seconds())
		first, err := s.firstDeliveries(ctx, up)
		if err != nil {
			s.Event("the new cluster's offsets could not be read: %v", err)
		}
		s.Evidence("first_delivery_after_up_s", first)
		for _, class := range classes {
			switch at, ok := first[class]; {
			case !ok:
				s.Broke("nothing of class %s was delivered by the new cluster", class)
			case at > 60:
				s.Broke("the new cluster's first delivery in class %s came %.0f s after it was up, over 60 s", class, at)
			}
		}
		if n := s.load.refused.count(); n > 0 {
			s.Broke("requests were answered 503 in %d seconds, although the ledger was there", n)
		}
		return s.At(ctx, 1)
	},
}

var classes = []string{"transactional", "trigger", "campaign"}

// firstDeliveries is how many seconds after up each class had its first delivery
// by the cluster that is there now. An offset that it has committed is of a
// message that came by it: there are no others in it.
func (s *Stage) firstDeliveries(ctx context.Context, up time.Time) (first map[string]float64, err error) {
	first = make(map[string]float64)
	s.Until(ctx, 90*time.Second, func() bool {
		cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var sums map[string]int64
		if sums, err = s.Kafka.Committed(cctx, s.Prefix+".delivery"); err != nil {
			return false
		}
		for _, class := range classes {
			n := sums[s.Prefix+"."+class+".email"] + sums[s.Prefix+"."+class+".push"]
			if _, seen := first[class]; n > 0 && !seen {
				first[class] = time.Since(up).Seconds()
				s.Event("first delivery of class %s by the new cluster, %.1f s after it was up", class, first[class])
			}
		}
		return len(first) == len(classes)
	})
	return first, err
}
