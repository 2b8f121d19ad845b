package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"rollcall/rls/rlmi"
)

// BenchmarkList50 measures a phone's view of a 50-member list: from SUBSCRIBE
// to complete full state, and from a member's PUBLISH to the list NOTIFY that
// shows it. The server is a process of its own; times are over loopback UDP.
//
//	go test ./e2e -run '^$' -bench List50 -benchtime 500x
func BenchmarkList50(b *testing.B) {
	for _, mode := range []string{"memory", "write-through"} {
		b.Run(mode, func(b *testing.B) {
			const members = 50
			list := make([]string, members)
			for i := range list {
				list[i] = fmt.Sprintf("sip:p%d@example.com", i)
			}
			dir := documents(b, map[string]string{"rls-services/global/index": service("sip:team@example.com", list...)})
			in := start(b, "--domain", "example.com", "--store", "sqlite:"+b.TempDir()+"/b.db", "--durability", mode, "--presence-auth", "open",
				"--xcap", dir, "--notify-interval", "list=0", "--notify-interval", "presence=0")
			u := newUA(b, in.addr)
			tags := make([]string, members)
			publish := func(i int, note string) {
				status, tag := u.publish(list[i], tags[i], string(pidf(list[i], "open", note)), 3600)
				if status != 200 {
					b.Fatalf("PUBLISH: %d", status)
				}
				tags[i] = tag
			}
			for i := range list {
				publish(i, "here")
			}
			var full, change []time.Duration
			for i := 0; b.Loop(); i++ {
				d := u.dialog("sip:adam@example.com", "sip:team@example.com")
				t0 := time.Now()
				if a := u.subscribe(d, 600, listHeaders...); a.Status() != 200 {
					b.Fatalf("SUBSCRIBE: %d", a.Status())
				}
				n, ok := u.notify(d, 5*time.Second)
				full = append(full, time.Since(t0))
				if !ok {
					b.Fatal("no NOTIFY")
				}
				msg, err := rlmi.Options{First: true}.Parse(n.ContentType(), n.Body())
				if err != nil || len(msg.Parts) != members {
					b.Fatalf("first NOTIFY has %d of %d states, err %v", len(msg.Parts), members, err)
				}
				t0 = time.Now()
				publish(i%members, fmt.Sprintf("n%d", i))
				if _, ok := u.notify(d, 5*time.Second); !ok {
					b.Fatal("no NOTIFY after the change")
				}
				change = append(change, time.Since(t0))
				u.subscribe(d, 0)
				u.notify(d, 5*time.Second)
			}
			report := func(name string, l []time.Duration) {
				slices.Sort(l)
				b.ReportMetric(float64(l[len(l)/2].Microseconds())/1000, name+"-p50-ms")
				b.ReportMetric(float64(l[len(l)*99/100].Microseconds())/1000, name+"-p99-ms")
			}
			report("full", full)
			report("change", change)
		})
	}
}
