// Package credential keeps passwords, tokens and keys fresh for whoever has to
// show them: a [Credential] asks its [Source] for new generations ahead of the
// end of the old, and tells each user which to use.
//
// # Use
//
// One Credential is shared by all that sign in with it, so a process makes one
// refresh at a time however many need it:
//
//	use, err := cred.Use(ctx) // waits only if there is nothing usable
//	if err != nil {
//		return err // no message was touched; errors and logs name cred, and hold no secret
//	}
//	req.Header.Set("Authorization", "Bearer "+use.Value())
//	...
//	switch {
//	case resp.StatusCode == http.StatusUnauthorized: // certainly not taken
//		use.Rejected("401")         // one refresh, or back to the last good one
//		use, err = cred.Use(ctx)    // then the same hand-over once more
//	default:
//		use.Accepted() // whatever else the answer is: it let us in
//	}
//
// Whoever is refused again says Rejected again and gives the message back as
// [message.Returned], which is no attempt: the next Use fails until there is
// something that may work. In tests, [Fixed] is a Source of one value.
//
// # Generations
//
//	                  Accepted                    a newer one was accepted
//	candidate ─────────────────────▶ current ─────────────────────▶ spare
//	    │ Rejected                      │ Rejected                     │
//	    ▼                               ▼                              ▼
//	rejected, tried again later    rejected: refresh, else a spare  its end
//
// A candidate proves itself on one use at a time while the current generation
// goes on serving all others. What is expired, can't be parsed, or is older
// than the current one is no candidate: it never displaces one that works. An
// older one is a spare, for when there is nothing else.
//
// While the source fails, it is asked again with growing, jittered pauses, and
// the current generation is used to its last second.
//
// # On disk
//
// With a [Safe], the last generation that a service accepted is there for the
// next process: a spare from the start, for when its source is away. So are the
// refresh tokens that a server replaces.
//
// No error, log line or String of this package holds a key, an assertion or a
// token.
package credential
