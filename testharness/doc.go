// Package testharness holds what the tests of this project, and those of a
// server that embeds it, put in place of the world: a network in memory with
// faults that can be drawn from a seed ([Network]), a peer that lies
// ([Byzantine]), and a disk that hangs, fills up, lies and forgets ([Disk]).
//
// Everything runs in virtual time: make it inside a testing/synctest bubble,
// and nothing waits but for channels and timers of that bubble. Outside one it
// works as well, in real time.
//
// Faults are drawn from a seed. The dice of a chunk depend on the seed, the two
// hosts, the number of the connection between them and the number of the chunk
// on it, and on nothing else: not on other connections, and not on the faults
// that were set before. Which goroutine dials or writes first is the Go
// runtime's choice, not the seed's.
//
// DESIGN.md beside this file says what each part models, and what it does not.
package testharness
