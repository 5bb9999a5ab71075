package baton

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
)

// TestOwnedIsACount: a shutdown waits for as long as the number falls.
func TestOwnedIsACount(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "pki")
	addr := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	for _, err := range []error{PKIInit(ca), PKIIssue(ca, "n1", []string{"127.0.0.1"})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n, err := Open(t.Context(), Config{
		Name: "n1", Data: filepath.Join(dir, "n1"), PKI: ca, UserAddr: addr(), MgmtAddr: addr(), Expect: 1, Profile: "local", Mux: KV(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c, err := Dial(t.Context(), ClientConfig{Addrs: []string{n.userAddr}, PKI: ca})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 {
		if _, err := c.Open(t.Context(), OpenOptions{ID: fmt.Sprint("s", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.owned(); got != 3 {
		t.Errorf("%d sessions, want 3", got)
	}
}
