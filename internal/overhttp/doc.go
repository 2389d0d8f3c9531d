// Package overhttp hands a message to an HTTP service in one request, once, and
// is certain of what it says about it. Providers that speak HTTP are made of a
// [Client]: they say what the request is, and what an answer means.
//
// # A hand-over
//
//	Client.Reserve     a slot under the concurrency, and a place on a connection;
//	                   an error touches no message
//	Place.Post         ctx has ended                Returned
//	                   last fails                   Returned
//	                   no byte of the body left     Deferred, or Returned when ctx ended
//	                   REFUSED_STREAM               Deferred: not processed (RFC 9113 §8.7)
//	                   GOAWAY below the stream      tried on another connection, once,
//	                                                else Deferred (RFC 9113 §6.8)
//	                   an answer                    what Request.Judge says
//	                   anything else                Unknown: a broken connection, no
//	                                                answer in time
//	Place.Release      the slot is free again
//
// # One request, once
//
// [net/http.Transport] repeats some requests on a new connection, those with an
// Idempotency-Key among them, and may dial between its caller and the wire. A
// [net/http.ClientConn] does neither: it is one connection, here with a place
// reserved on it in Reserve, and a request without GetBody. So last is called
// right before RoundTrip, when there is nothing left to wait for. Should the
// connection stall all the same, the body is not given out any more once 10 s
// have passed since last. Redirects are answers like others.
//
// The body is also the evidence: while nobody has read from it, nothing of the
// message can have left, whatever became of the headers. It is then sealed and
// the message tried on another connection, once. From the first read on, the
// outcome hangs on the answer. So what identifies a message belongs in the body
// or does no harm in a header.
//
// # A second try
//
// Where Judge says that the request was refused for its credential, it is made
// once more with the header that Request.Renew gives, within the same 10 s, with
// the same body. last is not asked again. Refused again, or with no other
// credential to be had, the message is Returned, which is no attempt. Where a
// connection is bound to its credential ([Config].Bound), the second try has a new
// one.
package overhttp
