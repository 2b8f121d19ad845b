// Package xcapclient finds XCAP documents (RFC 4825): resource lists, list services, rules. A Client asks layered
// sources, a directory of files (Dir), an XCAP server (HTTP), the database (Stored), and tells when a document changed.
//
// It owns fetching, copies in memory and change signals. It reads no document's meaning: node selectors, references
// and rules belong to packages rls/list and pa/policy. It never follows a reference by itself and asks no server
// but those it was given.
//
// A document is named by its selector, "AUID/users/XUI/FILE" or "AUID/global/FILE" (RFC 4825 6.2): each segment
// percent-decoded, but "/" and "%" within a segment stay "%2F" and "%25". Other spellings are put into this form.
//
// Invariants:
//
//   - A Document is immutable and shared: nobody may write to its Body.
//   - The first source that has a document wins. A source that cannot tell (server unreachable and no copy, for
//     instance) ends the search with its error: what a lower layer says may grant more than the missing document would
//     (XC-05, RFC 5025 10). A source that has nothing says fs.ErrNotExist, and only then the next one is asked.
//   - Every copy in memory is bounded, in bytes and where a peer decides their number in entries.
//   - What HTTPOptions.Copies keeps of a server's documents beyond the process is bounded as its copies in memory are.
//   - Changes are named, not delivered: a burst of changes of one document can be one call of a watcher, which reads
//     the newest version. A change is never lost while Run runs; one that changes nothing may be told.
//
// Half-written files: a file that is not well-formed XML does not replace a version that was for five seconds, and a
// new one is not there for as long. Who saves in place is so never seen half-way, and a fault that stays is seen.
//
// Goroutines: Client.Run and what it starts; it waits for them. Without Run nothing watches, and documents are as fresh
// as Dir's scan at the start, HTTPOptions.MaxAge and Refresh make them.
//
//	c := xcapclient.New(dir, xcapclient.HTTP("http://xcap.example.com/xcap-root", xcapclient.HTTPOptions{}))
//	go c.Run(ctx)
//	doc, err := c.Document(ctx, xcapclient.Selector("resource-lists", "sip:alice@example.com", "index"))
package xcapclient
