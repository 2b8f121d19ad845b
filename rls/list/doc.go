// Package list turns rls-services and resource-lists documents (RFC 4826) into
// the members a list server subscribes to.
//
// It owns the reading of both formats, XCAP references and node selectors
// (RFC 4825 section 6) and the expansion of a service into a [Tree]. It does no
// I/O, has no clock and no logger: documents and services come through
// [Expander], canonical URIs through [Normalize].
//
// What expansion does (RFC 4826 section 4.5):
//   - A <list> within a list, and an <external> list, are flattened into the
//     list that holds them. A member whose URI is itself a list service becomes
//     a nested Tree.
//   - References are resolved only within [Expander.Roots]; nothing else is ever
//     fetched. They must lead into resource-lists documents.
//   - One bad entry, reference or nested list never fails the list: it is left
//     out, or is listed empty, with a [Problem] that says where and why. Only
//     the list at the top fails, with [ErrNotService] or [ErrReference].
//   - A member is listed once per list, the first one winning, judged by its
//     canonical URI, so also by string.
//   - A loop is judged by path: two lists may both name a third (a diamond), but
//     a list that leads back to one it is part of is left out there.
//   - A member beyond the depth limit is left out too: listing it as a single
//     resource would only move the nesting into a subscription to ourselves.
//
// Invariants: a Tree does not change once returned and may be shared; Problems
// number at most [MaxProblems] for an expansion, members at most
// [Expander.MaxMembers]; a document has at most [MaxBytes] bytes, 64 levels, no
// DTD; an expansion reads at most 1000 documents and four times MaxBytes in all.
//
// Example:
//
//	services, problems, err := list.ParseServices("rls-services/global/index", etag, body, normalize)
//	tree, err := (&list.Expander{Docs: docs, Services: find, Roots: roots, Normalize: normalize}).Expand(ctx, "sip:friends@example.com")
package list
