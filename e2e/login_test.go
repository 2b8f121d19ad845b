package e2e

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"

	"rollcall/e2e/peer"
)

// TestLogIn: phones at an address that is not trusted log in with users of a
// file as htdigest writes it: two softphones, and one that is given every hash
// in turn. A wrong password gets nobody in (CORE-22, DG-01).
func TestLogIn(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	var lines strings.Builder
	for _, user := range []string{"adam", "bill"} {
		h := md5.Sum([]byte(user + ":example.com:secret-" + user))
		fmt.Fprintf(&lines, "%s:example.com:%s\n", user, hex.EncodeToString(h[:]))
	}
	if err := os.WriteFile(users, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--notify-interval", "presence=0",
				"--trust", "192.0.2.0/24", "--users", "file:"+users, "--digest", "MD5")
			o := peer.BaresipOptions{AOR: "sip:adam@example.com", Password: "secret-adam", Server: in.addr, Transport: transport, Contacts: []string{"sip:bill@example.com"}}
			watcher := peer.StartBaresip(t, o)
			o.AOR, o.Password, o.Contacts, o.Publish = "sip:bill@example.com", "secret-bill", nil, true
			publisher := peer.StartBaresip(t, o)
			for _, status := range []string{peer.BaresipOnline, peer.BaresipOffline} {
				publisher.SetPresence(status)
				watcher.WaitContact("sip:bill@example.com", status, 10*time.Second)
			}
			publisher.Quit()
			watcher.Quit()
		})
	}
	t.Run("sipgo", func(t *testing.T) {
		in := start(t, "--domain", "example.com", "--store", "memory", "--presence-auth", "open", "--trust", "192.0.2.0/24")
		if _, code := commandWith(t, "correct horse\n", "user", "add", "adam@example.com", "--http", in.http); code != 0 {
			t.Fatalf("user add: exit %d", code)
		}
		ua, err := sipgo.NewUA()
		if err != nil {
			t.Fatal(err)
		}
		defer ua.Close()
		client, err := sipgo.NewClient(ua, sipgo.WithClientNAT(), sipgo.WithClientConnectionAddr(fmt.Sprintf("127.0.0.1:%d", peer.FreePort(t))))
		if err != nil {
			t.Fatal(err)
		}
		for password, want := range map[string]int{"correct horse": 200, "battery": 401} {
			var uri sip.Uri
			if err := sip.ParseUri("sip:bill@example.com", &uri); err != nil {
				t.Fatal(err)
			}
			req := sip.NewRequest(sip.SUBSCRIBE, uri)
			req.SetDestination(in.addr)
			for _, h := range []string{"From: <sip:adam@example.com>;tag=x" + password[:3], "Event: presence", "Expires: 0", "Contact: <sip:adam@127.0.0.1:9>"} {
				name, value, _ := strings.Cut(h, ": ")
				req.AppendHeader(sip.NewHeader(name, value))
			}
			res, err := client.Do(t.Context(), req)
			if err != nil || res.StatusCode != 401 {
				t.Fatalf("%v, %v", res, err)
			}
			res, err = client.DoDigestAuth(t.Context(), req, res, sipgo.DigestAuth{Username: "adam", Password: password})
			if err != nil || res.StatusCode != want {
				t.Errorf("DG-01 %q: %v, %v; want %d", password, res, err, want)
			}
		}
	})
}
