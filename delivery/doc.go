// Package delivery takes items from Kafka and from the ledger's feed, claims
// the attempts that they name, and hands the messages to providers: at most
// once for each attempt.
//
// # An attempt
//
//	         Offer ─▶ queue ┐                  ┌─ feed ◀─ Ledger.Due, Ledger.Unclaimed
//	                        ▼                  ▼
//	                     a router of the lane takes it
//	                        │
//	    not ours ◀──────────┤ read the content          (park, finish)
//	                        │
//	   set aside ◀──────────┤ give it to a sender of    (waiting row, finish)
//	                        │ the lane and its provider,
//	                        │ with room for its domain
//	                        │
//	    provider down ◀────▶┤ reserve a slot            (wait, with the item in hand)
//	                        │
//	                        │ note both clocks
//	taken, not due, … ◀─────┤ claim                     (finish)
//	                        │ finish
//	unreadable, held ◀──────┤
//	                        │ Slot.Send ── connects, writes …
//	panic, held ◀───────────┤
//	returned ◀──────────────┤ last check: clocks, life, stopping
//	------------------------┼----- what can't be taken back ------------------
//	unknown ◀───────────────┤ no clear answer, a panic
//	                        │
//	  sent, deferred, rejected
//	                        │ release the slot
//	                        ▼
//	                     record
//
// # Invariants
//
//  1. A message is handed over only between a claim that the ledger answered
//     with Claimed and that claim's record, by the sender that asked. The last
//     check is granted at most once for an attempt.
//  2. The last check compares the time since before the claim was asked for, by
//     the monotonic and by the wall clock, with Config.ClaimValid, and with what
//     the claim said is left of the message's life. A process that was stopped
//     in between gives the message back. Stopped between the check and the
//     write itself it can't: that gap no sender can close.
//  3. A claim is asked for with a slot of the provider in hand, so that a
//     provider which can't be used costs no message an attempt, and a kill
//     leaves no more attempts open than there are senders.
//  4. An item is finished once, and not before the ledger holds what became of
//     it: its attempt, its end, its waiting row or its parked record. The answer
//     of the provider is not waited for.
//  5. Every attempt that this process may have open is in each heartbeat, until
//     its end is durable.
//  6. Lanes share no queue, no sender and no feed. Of a provider that they share,
//     each keeps a part that the others can't take (see Route). Of a lane's
//     providers each has senders of its own, and what finds none of them for
//     0.1 s, while another provider has some and uses them, is set aside (see track): so one
//     that hangs, or can't be used, costs the others nothing.
//  7. Memory is bounded: a lane has in hand at most its senders (so many for each
//     provider), 8 items that are on their way to one, its queue, its feed's queue and that of its
//     tenants' turns (half its senders), of which 16 may have content above 64 KiB.
//  8. Of a lane in which more waits than it has in hand, each tenant's oldest is
//     brought in turn, and goes first three times of four.
//  9. Only after a deferral, or unseen, does a message go to another provider than
//     before (see Order).
//  10. A provider that defers more than a tenth gets less, until it takes what it
//     gets (see pace). It never gets more than its route's rate.
//  11. A provider that fails most of what it gets by its own fault (message.Result's
//     Fault, or an answer lost) is one that can't be used: its messages wait, or go
//     to the next of their order, with no attempt spent, but for one at a time that
//     tries. So is one that asks for a pause, while it lasts (see breaker), and one
//     that gives no slot for 10 s while another can be used (see gate).
//  12. A recipient's domain, or push service, that hangs or defers, while others
//     do well, leaves them senders, and slows neither pace nor breaker. What finds
//     no room for its domain is set aside, with no attempt spent (see domains).
//
// # Where a failure lands
//
// When the process is killed, what the ledger holds decides:
//
//	killed                          the ledger holds      what follows
//	before the claim's commit       no attempt            the record comes again, or the cursor finds the message
//	after it, before the last check an open attempt       in doubt when its heartbeat has stopped
//	in the middle of the write      an open attempt       in doubt (an SMTP server drops it, but nobody here can know)
//	after the final dot             an open attempt       in doubt
//	after the reply, before record  an open attempt       in doubt
//	after the record's commit       its outcome           nothing
//
// When it lives, and something else fails:
//
//	the provider can't be used      items wait in hand, in Kafka and set aside; no attempt is made
//	the ledger is away              claims wait, then give back what has become too old;
//	                                ends wait to be recorded, their attempts in each heartbeat
//	the process was stopped (STOP)  the last check gives the message back
//	the provider is slow            the last check, or Envelope.Until, ends it: deferred by the
//	before the last check           provider's fault. A stop within Send that took most of
//	                                Config.ClaimValid looks the same
//	the provider panics             held before the last check, unknown after it
//	the worker stops (Run's ctx)    what is not yet handed over is given back; open
//	                                replies have Config.ShutdownGrace, then they are unknown
package delivery
