package baton_test

import (
	"bytes"
	"crypto/tls"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// laterClock tells a date that a test moves on, and does not wait whole minutes.
type laterClock struct {
	seam.OSClock
	ahead atomic.Int64
}

func (c *laterClock) Wall() time.Time { return c.OSClock.Wall().Add(time.Duration(c.ahead.Load())) }

func (c *laterClock) AfterFunc(d time.Duration, f func()) seam.Timer {
	if d == time.Minute {
		d = 10 * time.Millisecond
	}
	return c.OSClock.AfterFunc(d, f)
}

// shownCert is the certificate that a management port shows.
func shownCert(t *testing.T, addr string) []byte {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"baton-admin/1"}})
	must(t, err)
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Raw
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for ctx := testContext(t); !ok(); {
		if seam.Sleep(ctx, seam.OSClock{}, 10*time.Millisecond) != nil {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestCertificateIsRenewedWithoutARestart: a node warns of its certificate's end,
// takes up the renewed one while it runs, and says so when it is too late.
func TestCertificateIsRenewedWithoutARestart(t *testing.T) {
	dir, clock := t.TempDir(), &laterClock{}
	pki := filepath.Join(dir, "pki")
	must(t, baton.PKIInit(pki))
	must(t, baton.PKIIssue(pki, "n1", []string{"127.0.0.1"}))
	addr := freeAddr(t)
	n, err := baton.Open(testContext(t), baton.Config{
		Name: "n1", Data: filepath.Join(dir, "n1"), PKI: pki, UserAddr: "127.0.0.1:0", MgmtAddr: addr, HTTPAddr: "127.0.0.1:0",
		Expect: 1, Profile: "local", Clock: clock,
	})
	must(t, err)
	defer n.Close()
	admin, err := baton.DialAdmin(testContext(t), baton.AdminConfig{Addrs: []string{addr}, PKI: pki})
	must(t, err)
	defer admin.Close()

	st, err := admin.Status(testContext(t))
	must(t, err)
	end := st.Nodes[0].CertificateEnd
	if left := time.Until(end); left < 4*365*24*time.Hour {
		t.Fatalf("status: the certificate lasts for %v", left)
	}
	warned := func() bool {
		d, err := admin.Debug(testContext(t))
		must(t, err)
		return strings.Contains(d.Log, "certificate ends")
	}
	if warned() {
		t.Error("warned of a certificate that lasts for years")
	}
	clock.ahead.Store(int64(time.Until(end) - 20*24*time.Hour))
	until(t, "a warning", warned)
	if h := askHealth(t, n, "/readyz"); h.has("certificate_expired") {
		t.Errorf("too early: %+v", h)
	}
	clock.ahead.Store(int64(time.Until(end) + time.Hour))
	awaitHealth(t, n, "out of time", func(h healthAnswer) bool { return h.has("certificate_expired") })
	clock.ahead.Store(0)
	awaitHealth(t, n, "well", well)

	former := shownCert(t, addr)
	must(t, baton.PKIRenew(pki, "n1"))
	until(t, "the renewed certificate", func() bool { return !bytes.Equal(shownCert(t, addr), former) })
	until(t, "a word about it", func() bool { // it shows it first, and tells then
		d, err := admin.Debug(testContext(t))
		must(t, err)
		return strings.Contains(d.Log, "was renewed") && strings.Contains(d.Metrics, `baton_certificate_end_timestamp_seconds{of="node"}`)
	})
}
