package bench

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticksPerSecond is USER_HZ, which is 100 wherever Go runs on Linux.
const ticksPerSecond = 100

// usage is processor seconds by part.
type usage struct {
	parts   []string
	seconds []float64
}

func (u usage) since(before usage, messages int) []CPU {
	all := make([]CPU, 0, len(u.parts))
	for i, part := range u.parts {
		s := u.seconds[i]
		if i < len(before.seconds) {
			s -= before.seconds[i]
		}
		all = append(all, CPU{Part: part, Seconds: s, PerMicros: s * 1e6 / float64(messages)})
	}
	return all
}

// readCPU reads this process's processor time, and for each store on this
// machine that of the process which listens at its address, with its children.
func readCPU(stores []string) usage {
	var self syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self)
	own := time.Duration(self.Utime.Nano() + self.Stime.Nano())
	u := usage{[]string{"stormpost"}, []float64{own.Seconds()}}
	for _, addr := range stores {
		pid := listening(addr)
		if pid == 0 {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		u.parts = append(u.parts, strings.TrimSpace(string(name))+" "+addr)
		u.seconds = append(u.seconds, treeCPU(pid))
	}
	return u
}

// listening is the process that listens on a port of this machine, or 0.
func listening(addr string) int {
	_, text, err := net.SplitHostPort(addr)
	port, err2 := strconv.Atoi(text)
	if err != nil || err2 != nil {
		return 0
	}
	inodes := make(map[string]bool)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for scan := bufio.NewScanner(bytes.NewReader(b)); scan.Scan(); {
			f := strings.Fields(scan.Text())
			if len(f) < 10 || f[3] != "0A" { // LISTEN
				continue
			}
			_, hexPort, _ := strings.Cut(f[1], ":")
			if p, err := hex.DecodeString(hexPort); err == nil && len(p) == 2 && int(p[0])<<8|int(p[1]) == port {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && inodes[to] {
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
			return lowest(pid)
		}
	}
	return 0
}

// lowest is the topmost ancestor of pid with the same program: for PostgreSQL,
// whose children inherit the socket, the postmaster.
func lowest(pid int) int {
	for {
		s, ok := stat(pid)
		if !ok {
			return pid
		}
		p, ok := stat(s.parent)
		if !ok || p.name != s.name {
			return pid
		}
		pid = s.parent
	}
}

type procStat struct {
	name   string
	parent int
	ticks  float64 // its own, and those of children that have ended
}

func stat(pid int) (procStat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, false
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return procStat{}, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 15 {
		return procStat{}, false
	}
	s := procStat{name: string(b[open+1 : end])}
	s.parent, _ = strconv.Atoi(f[1])
	for _, i := range []int{11, 12, 13, 14} {
		n, _ := strconv.ParseFloat(f[i], 64)
		s.ticks += n
	}
	return s, true
}

// treeCPU is the processor seconds of a process and its living children.
func treeCPU(pid int) float64 {
	s, _ := stat(pid)
	sum := s.ticks
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		child, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if c, ok := stat(child); ok && c.parent == pid {
			sum += c.ticks
		}
	}
	return sum / ticksPerSecond
}
