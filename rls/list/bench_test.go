package list

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

func entries(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `<rl:entry uri="sip:user%d@example.com"><rl:display-name>User %d</rl:display-name></rl:entry>`, i, i)
	}
	return b.String()
}

func BenchmarkExpand(b *testing.B) {
	for _, n := range []int{50, 10000} {
		services := rlsOpen + `<service uri="sip:inline@example.com"><list>` + entries(n) + `</list></service>` +
			`<service uri="sip:ref@example.com"><resource-list>` + own + "/" + joeDoc + `/~~/resource-lists/list%5b@name=%22l%22%5d</resource-list></service>` + rlsClose
		doc := strings.Replace(rlOpen, "xmlns=", "xmlns:rl=", 1)
		doc = strings.Replace(doc, "<resource", "<rl:resource", 1) + `<rl:list name="l">` + entries(n) + `</rl:list></rl:resource-lists>`
		e, _ := expander(b, services, map[string]string{joeDoc: doc})
		for _, kind := range []string{"inline", "ref"} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					tree, err := e.Expand(context.Background(), "sip:"+kind+"@example.com")
					if err != nil || tree.Members != n {
						b.Fatal(tree, err)
					}
				}
			})
		}
	}
}

func BenchmarkParseServices(b *testing.B) {
	var in strings.Builder
	in.WriteString(rlsOpen)
	for i := range 1000 {
		fmt.Fprintf(&in, `<service uri="sip:list%d@example.com"><resource-list>%s/%s/~~/resource-lists/list</resource-list><packages><package>presence</package></packages></service>`, i, own, joeDoc)
	}
	body := []byte(in.String() + rlsClose)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if s, _, err := ParseServices(index, "", body, canon); err != nil || len(s) != 1000 {
			b.Fatal(err)
		}
	}
}
