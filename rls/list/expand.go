package list

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// NoDocument is the detail of a [Problem] with a document that is not there.
const NoDocument = "no such document"

// Documents gives access to XCAP documents. The selector is "AUID/users/XUI/
// FILE" or "AUID/global/FILE" as in [Reference.Document]. A document that is
// not there is an error for which errors.Is(err, fs.ErrNotExist) holds. The
// body is not kept and not changed.
type Documents interface {
	Document(ctx context.Context, selector string) (body []byte, etag string, err error)
}

// Errors of [Expander.Expand].
var (
	// ErrNotService means that the key is no list service.
	ErrNotService = errors.New("list: not a list service")
	// ErrReference means that the service is there but its list cannot be
	// resolved (RFC 4826 section 4.5: 502).
	ErrReference = errors.New("list: the resource list cannot be resolved")
)

// Tree is an expanded list service. It does not change after Expand returns,
// so it can be shared.
type Tree struct {
	URI, Key string // of the service
	Names    []Name // of its list
	Packages []string
	Nodes    []Node // in document order
	// Problems are those of this list; nested lists have their own.
	Problems []Problem
	// Documents are the selectors this tree depends on, those of nested lists
	// and those found missing included. Which members are services themselves
	// depends on the set of services too, which is the caller's.
	Documents []string
	Members   int // Nodes here and in nested lists
	// Document is the selector of the rls-services document that defines the
	// service, from which its owner can be told; ETag is its version.
	Document, ETag string
	// Err is nil, or wraps ErrReference: the list is empty because it could not
	// be resolved.
	Err error
}

// Accepts reports whether the list is for the event package (LS-07).
func (t *Tree) Accepts(pkg string) bool { return accepts(t.Packages, pkg) }

// Node is one member of a list.
type Node struct {
	URI string // as written, without white space
	Key string // canonical
	// Names are the member's own, or those of List when it has none.
	Names  []Name
	Source string // "document ~~ path", for an entry-ref followed by " -> " and its target
	List   *Tree  // set when the member is a list service itself
}

// Expander resolves services into trees. It has no state of its own: it may be
// used by several goroutines when Docs and Services may.
type Expander struct {
	Docs Documents
	// Services finds a service by key; for what is none it returns nil and
	// either nil or ErrNotService. It is asked once for every member.
	Services  func(ctx context.Context, key string) (*Service, error)
	Normalize Normalize // nil compares URIs as strings
	// Roots are the XCAP root URIs that mean our own documents, such as
	// "http://xcap.example.com". References elsewhere are not followed.
	Roots []string
	// Permit, if set, decides whether a list defined in the document from may
	// refer to the document to. By default an XCAP user can read only documents
	// of his own (RFC 4825 section 5.7), but nil permits everything.
	Permit func(from, to string) bool
	// MaxDepth is how many lists and external references may be nested within
	// the list at the top: 0 means 8, less than 0 none.
	MaxDepth int
	// MaxMembers bounds the members of a tree with its nested lists: 0 means
	// 10,000.
	MaxMembers int
}

const (
	defaultDepth   = 8
	defaultMembers = 10000

	// Bounds of one expansion, beyond those of each document.
	maxTotalBytes = 4 * MaxBytes
	maxTotalTags  = 2 * maxXMLTags
	maxDocuments  = 1000
	maxWork       = 1 << 24 // elements looked at
	documentWork  = 64      // what a dependency on a document counts as

	maxPathName = 64 // bytes of a list's name in Source

	maxNames    = 16   // of one member
	maxNameText = 1024 // bytes
)

// Expand resolves the service with the given key. The error wraps
// [ErrNotService], [ErrReference] or that of ctx, or is one of Services for the
// key itself. With ErrReference the tree is not nil: it has no members, but
// Problems and Documents.
func (e *Expander) Expand(ctx context.Context, key string) (*Tree, error) {
	s, err := e.service(ctx, key)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotService, key)
	}
	return e.ExpandService(ctx, s)
}

// ExpandService resolves a service at hand, as Expand does.
func (e *Expander) ExpandService(ctx context.Context, s *Service) (*Tree, error) {
	x := &expansion{Expander: e, ctx: ctx, maxDepth: e.MaxDepth, maxMembers: e.MaxMembers}
	if x.maxDepth == 0 {
		x.maxDepth = defaultDepth
	}
	if x.maxMembers <= 0 {
		x.maxMembers = defaultMembers
	}
	t := x.expand(s, 0)
	if x.err != nil {
		return nil, x.err
	}
	return t, t.Err
}

// service returns nil for what is no service.
func (e *Expander) service(ctx context.Context, key string) (*Service, error) {
	if e.Services == nil {
		return nil, nil
	}
	s, err := e.Services(ctx, key)
	if errors.Is(err, ErrNotService) {
		return nil, nil
	}
	return s, err
}

// expansion is what all lists of one tree share.
type expansion struct {
	*Expander
	ctx                  context.Context
	maxDepth, maxMembers int

	path     []string           // keys of the services being expanded
	docs     map[string]*loaded // by selector
	problems int
	members  int
	work     int
	bytes    int
	tags     int
	stopped  bool  // a limit was reached
	err      error // of ctx: the whole expansion is off
}

type loaded struct {
	root   *Element
	kind   string // of the problem, when there is no root
	detail string
}

// builder makes one Tree.
type builder struct {
	*expansion
	tree *Tree
	seen map[string]struct{} // keys of members
	// lists has the lists gone through: true while within, false after.
	lists map[*Element]bool
	deps  map[string]struct{} // what tree.Documents has
}

func (x *expansion) expand(s *Service, depth int) *Tree {
	t := &Tree{URI: s.URI, Key: s.Key, Packages: s.Packages, Document: s.Document, ETag: s.ETag}
	b := &builder{
		expansion: x, tree: t,
		seen: make(map[string]struct{}), lists: make(map[*Element]bool), deps: make(map[string]struct{}),
	}
	x.path = append(x.path, s.Key)
	defer func() { x.path = x.path[:len(x.path)-1] }()
	if s.Document != "" {
		b.depends(s.Document)
	}
	list, doc, path := s.Inline, s.Document, s.Path+"/list"
	if list == nil {
		var ref Reference
		var p *Problem
		if list, ref, p = b.follow(s.Ref, "list", s.Document); p != nil {
			p.Source = s.source()
			b.problem(*p)
			t.Err = fmt.Errorf("%w: %s: %s", ErrReference, s.Ref, p.Detail)
			return t
		}
		doc, path = ref.Document, ref.Node.String()
	}
	t.Names = names(list)
	b.list(list, doc, path, depth)
	t.Members = len(t.Nodes)
	for i := range t.Nodes {
		if l := t.Nodes[i].List; l != nil {
			t.Members += l.Members
			for _, d := range l.Documents {
				b.depends(d)
			}
		}
	}
	return t
}

func (b *builder) depends(selector string) {
	if _, ok := b.deps[selector]; ok {
		return
	}
	b.spend(documentWork, selector, "")
	b.deps[selector] = struct{}{}
	b.tree.Documents = append(b.tree.Documents, selector)
}

// problem keeps the first MaxProblems of an expansion.
func (b *builder) problem(p Problem) {
	if b.problems >= MaxProblems {
		return
	}
	if b.problems++; b.problems == MaxProblems {
		p = Problem{Source: p.Source, Kind: KindLimit, Detail: "further problems are not listed"}
	}
	b.tree.Problems = append(b.tree.Problems, p)
}

// halt ends the whole traversal; what is listed by then stays.
func (b *builder) halt(source, detail string) {
	if !b.stopped {
		b.stopped = true
		b.problem(Problem{Source: source, Kind: KindLimit, Detail: detail})
	}
}

// spend counts elements looked at, and reports whether to go on.
func (b *builder) spend(n int, doc, path string) bool {
	before := b.work
	if b.work += n; b.work > maxWork {
		b.halt(doc+" ~~ "+path, "too much work")
	}
	// One look at ctx per thousand elements is enough and costs nothing.
	if before>>10 != b.work>>10 && b.err == nil {
		b.err = b.ctx.Err()
	}
	return !b.stopped && b.err == nil
}

// list adds the members of one <list> in document order (RFC 4826 section 4.5).
func (b *builder) list(el *Element, doc, path string, depth int) {
	b.lists[el] = true
	defer func() { b.lists[el] = false }()
	var entries, refs, externals, lists int
	for _, c := range el.kids {
		if !b.spend(1, doc, path) {
			return
		}
		switch {
		case is(c, "entry"):
			entries++
			b.entry(c, nil, at{doc, path, "entry", entries}, "", depth)
		case is(c, "entry-ref"):
			refs++
			b.entryRef(c, at{doc, path, "entry-ref", refs}, depth)
		case is(c, "external"):
			externals++
			b.external(c, at{doc, path, "external", externals}, depth)
		case is(c, "list"):
			lists++
			where := at{doc, path, "list", lists}
			inner := where.path()
			if name, ok := c.attr("name"); ok && len(name) <= maxPathName && strings.IndexByte(name, '"') < 0 {
				inner = path + `/list[@name="` + name + `"]`
			}
			if _, done := b.lists[c]; done {
				b.problem(Problem{where.String(), "", KindDuplicate, "this list is included already"})
				continue
			}
			b.list(c, doc, inner, depth)
		}
	}
}

// at is a place in a document; its text is made when it is needed.
type at struct {
	doc, parent, name string
	position          int
}

func (a at) path() string { return a.parent + "/" + a.name + "[" + strconv.Itoa(a.position) + "]" }

func (a at) String() string { return a.doc + " ~~ " + a.path() }

// entry adds a member. names, if any, come from the entry-ref that led here,
// and target says where to.
func (b *builder) entry(el *Element, override []Name, where at, target string, depth int) {
	raw, _ := el.attr("uri")
	uri := compactURI(raw)
	source := where.String() + target
	k, err := key(uri, b.Normalize)
	if err != nil {
		b.problem(Problem{source, clip(uri), KindBadURI, err.Error()})
		return
	}
	if _, dup := b.seen[k]; dup {
		b.problem(Problem{source, uri, KindDuplicate, "listed already"})
		return
	}
	if b.members >= b.maxMembers {
		b.halt(source, "more than "+strconv.Itoa(b.maxMembers)+" members")
		return
	}
	b.seen[k] = struct{}{}
	node := Node{URI: uri, Key: k, Names: override, Source: source}
	if len(node.Names) == 0 {
		node.Names = names(el)
	}
	s, err := b.service(b.ctx, k)
	if err != nil {
		if b.err = b.ctx.Err(); b.err != nil {
			return
		}
		b.problem(Problem{source, uri, KindReference, "whether this is a list is not known: " + err.Error()})
	}
	if s != nil {
		switch {
		case slices.Contains(b.path, s.Key):
			b.problem(Problem{source, uri, KindLoop, "part of itself: " + strings.Join(b.path, " > ") + " > " + s.Key})
			return
		case depth+1 > b.maxDepth:
			b.problem(Problem{source, uri, KindDepth, "nested deeper than " + strconv.Itoa(max(b.maxDepth, 0))})
			return
		}
	}
	b.members++
	if s != nil {
		node.List = b.expand(s, depth+1)
		if len(node.Names) == 0 {
			node.Names = node.List.Names
		}
	}
	b.tree.Nodes = append(b.tree.Nodes, node)
}

func (b *builder) entryRef(el *Element, where at, depth int) {
	raw, _ := el.attr("ref")
	target, ref, p := b.follow(raw, "entry", where.doc)
	if p != nil {
		p.Source = where.String()
		b.problem(*p)
		return
	}
	b.entry(target, names(el), where, " -> "+ref.String(), depth)
}

func (b *builder) external(el *Element, where at, depth int) {
	raw, _ := el.attr("anchor")
	target, ref, p := b.follow(raw, "list", where.doc)
	if p == nil {
		within, seen := b.lists[target]
		switch {
		case within:
			p = &Problem{URI: compactURI(raw), Kind: KindLoop, Detail: "this list is part of itself"}
		case seen:
			p = &Problem{URI: compactURI(raw), Kind: KindDuplicate, Detail: "this list is included already"}
		case depth+1 > b.maxDepth:
			p = &Problem{URI: compactURI(raw), Kind: KindDepth, Detail: "nested deeper than " + strconv.Itoa(max(b.maxDepth, 0))}
		}
	}
	if p != nil {
		p.Source = where.String()
		b.problem(*p)
		return
	}
	b.list(target, ref.Document, ref.Node.String(), depth+1)
}

// follow resolves a reference found in document from to an element of the given
// name.
func (b *builder) follow(raw, name, from string) (*Element, Reference, *Problem) {
	uri := compactURI(raw)
	bad := func(kind, detail string) (*Element, Reference, *Problem) {
		return nil, Reference{}, &Problem{URI: clip(uri), Kind: kind, Detail: detail}
	}
	ref, err := ParseReference(uri, b.Roots)
	if err != nil {
		return bad(KindReference, err.Error())
	}
	if !strings.HasPrefix(ref.Document, "resource-lists/") {
		return bad(KindReference, "not a resource-lists document")
	}
	if ref.Node == nil {
		return bad(KindReference, "a document, not a <"+name+"> in one")
	}
	if b.Permit != nil && !b.Permit(from, ref.Document) {
		return bad(KindReference, "not permitted")
	}
	b.depends(ref.Document)
	if b.stopped || b.err != nil {
		return bad(KindLimit, "given up")
	}
	doc := b.load(ref.Document)
	if doc.root == nil {
		return bad(doc.kind, doc.detail)
	}
	el, n, err := ref.Node.selectCounted(doc.root)
	b.spend(n, ref.Document, ref.Node.String())
	if err != nil {
		return bad(KindReference, err.Error())
	}
	if !is(el, name) {
		return bad(KindReference, "selects <"+clip(el.name)+">, not <"+name+">")
	}
	return el, ref, nil
}

// load reads a document once per expansion.
func (b *builder) load(selector string) *loaded {
	if d, ok := b.docs[selector]; ok {
		return d
	}
	d := b.read(selector)
	if b.docs == nil {
		b.docs = make(map[string]*loaded)
	}
	b.docs[selector] = d
	return d
}

func (b *builder) read(selector string) *loaded {
	if b.err == nil {
		b.err = b.ctx.Err()
	}
	switch {
	case b.err != nil:
		return &loaded{kind: KindReference, detail: b.err.Error()}
	case b.bytes >= maxTotalBytes || b.tags >= maxTotalTags || len(b.docs) >= maxDocuments:
		return &loaded{kind: KindLimit, detail: "too many or too large documents"}
	case b.Docs == nil:
		return &loaded{kind: KindReference, detail: "no documents"}
	}
	body, _, err := b.Docs.Document(b.ctx, selector)
	if err != nil {
		b.err = b.ctx.Err()
		if errors.Is(err, fs.ErrNotExist) {
			return &loaded{kind: KindReference, detail: NoDocument}
		}
		return &loaded{kind: KindReference, detail: err.Error()}
	}
	root, tags, err := parseXML(body, NamespaceLists)
	if b.bytes += len(body); err != nil {
		return &loaded{kind: KindNotWellFormed, detail: err.Error()}
	}
	b.tags += tags
	return &loaded{root: root}
}

// names collects the display names of a list, entry or reference (LS-12).
func names(el *Element) []Name {
	var out []Name
	for _, c := range el.kids {
		if !is(c, "display-name") {
			continue
		}
		n := Name{Text: strings.Join(strings.Fields(c.text), " ")}
		if n.Text == "" {
			continue
		}
		n.Text = cut(n.Text, maxNameText)
		if lang, ok := c.attrNS(namespaceXML, "lang"); ok && validLang(lang) {
			n.Lang = lang
		}
		if out = append(out, n); len(out) == maxNames {
			break
		}
	}
	return out
}

// validLang accepts what xs:language does.
func validLang(s string) bool {
	n, first := 0, true
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9' && !first:
			if n++; n > 8 {
				return false
			}
		case c == '-' && n > 0:
			n, first = 0, false
		default:
			return false
		}
	}
	return n > 0
}

// cut shortens s to n bytes at most, between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// clip keeps a problem readable whatever was written.
func clip(s string) string { return cut(s, 256) }
