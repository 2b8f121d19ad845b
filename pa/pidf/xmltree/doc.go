// Package xmltree reads and writes the small XML documents of presence
// (PIDF, policy, watcherinfo) as trees with resolved namespaces.
//
// It owns the rules that hold for every XML body from the network: UTF-8
// only, no document type declaration and no entities beyond the five built in
// ones, bounded bytes, depth and number of elements, and everything
// Namespaces in XML 1.0 requires (encoding/xml, which does the lexing, checks
// neither nesting of raw tokens, prefixes, repeated attributes nor what stands
// outside the root element).
//
// Invariants: a tree that Parse returned can be written by Append and parsed
// again to an equal tree. Comments and processing instructions are dropped.
// The package does no I/O, reads no clock and keeps no state.
//
//	root, err := xmltree.Parse(body, xmltree.Limits{})
//	out := root.Append(nil)
package xmltree
