// Package plant holds bugs that can be planted, to see whether the drills call
// them. They are in a program built with the tag `planted` alone, one at a time, as
// the environment variable PLANTED_BUG says. In any other build Is is a constant
// false, and the compiler leaves out what stands behind it.
package plant

// Bug is a bug that can be planted. Each stands in the very code that else keeps
// the promise which it breaks.
type Bug string

// The bugs, each with what the recipient, or the client, has of it. To publish before
// the commit isn't among them: a claim finds no such message, the record is
// parked, and the lane's cursor brings the message once it is there: nobody has anything of it.
const (
	SkipAttempt   Bug = "skip-attempt"   // a claim leaves no attempt row: doubles
	FinishEarly   Bug = "finish-early"   // a journal's record is finished before the ledger has it: losses
	RetryUnknown  Bug = "retry-unknown"  // a lost answer is taken for "not taken": doubles
	EarlyAnswer   Bug = "early-answer"   // 202 before anything is kept: losses
	CountNumbers  Bug = "count-numbers"  // the number is count(*): gaps, and numbers given twice
	ForgetWaiting Bug = "forget-waiting" // the leave for the next attempt is not kept: losses
	IgnoreExpiry  Bug = "ignore-expiry"  // expires_at counts for nothing: stale messages
	ProcessKeys   Bug = "process-keys"   // an idempotency key is another one in each process: doubles
	ResendSilent  Bug = "resend-silent"  // what a dead worker had open is sent again: doubles
	NoCursor      Bug = "no-cursor"      // nobody feeds what Kafka has lost: losses
	NeedlessDoubt Bug = "needless-doubt" // some are in doubt without having been handed over: they are not sent
)
