//go:build !linux

package cluster

// bootID: no name of the boot is known here, so a restart proves nothing and
// waits until its predecessor is fenced.
func bootID() string { return "" }

func localFileSystem(int) bool { return false }
