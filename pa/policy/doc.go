// Package policy evaluates presence authorization rules.
//
// It owns the meaning of common policy (RFC 4745), presence rules (RFC 5025) and
// SER's im-rules: which rules match a watcher, how they combine, what of a
// presence document the watcher may see, and whether a MESSAGE may come; also
// what decides about each event package, see BasisOf. The OMA conditions external-list,
// other-identity and anonymous-request, the OMA transformations and the draft
// syntax <identity><id>...</id></identity> of older documents are understood
// too.
//
// Invariants:
//   - All rules of all documents are combined; their order never matters.
//   - Whatever is not understood gives less: an unknown condition makes its
//     rule not match, an unknown action or transformation grants nothing.
//   - A Ruleset is immutable and may be shared between goroutines. A document
//     that does not parse gives no Ruleset; the caller decides, and never to
//     the side of more.
//   - A list that an external-list names and nobody can read gives less, too:
//     until it is known, nobody is another identity.
//   - What a document may cost is bounded; beyond its bounds it is refused.
//   - Transform.Apply only takes away, apart from what the schema demands in
//     place of what was taken.
//
// The package does no I/O, reads no clock and writes no log.
//
//	rules, err := policy.Parse(body)
//	rules = rules.WithLists(lists) // those of rules.ExternalLists()
//	d := policy.Evaluate([]*policy.Ruleset{rules}, policy.Request{Watcher: "sip:bob@example.com", Now: now})
package policy
