package standby

// sharedSlots is how many may share a roleLock.
const sharedSlots = 16

// roleLock is held alone, or shared by several. It is made of channels, as whoever
// holds it can wait for a disk: the tests run in virtual time, which goes on
// while goroutines wait for channels, and not while they wait for a mutex.
type roleLock struct {
	turn  chan struct{} // taken while somebody enters, so that nobody starves
	slots chan struct{} // one for each who shares; all for who is alone
}

func newRoleLock() roleLock {
	return roleLock{turn: make(chan struct{}, 1), slots: make(chan struct{}, sharedSlots)}
}

func (l roleLock) Lock() {
	l.turn <- struct{}{}
	for range sharedSlots {
		l.slots <- struct{}{}
	}
	<-l.turn
}

func (l roleLock) Unlock() {
	for range sharedSlots {
		<-l.slots
	}
}

func (l roleLock) RLock() {
	l.turn <- struct{}{}
	l.slots <- struct{}{}
	<-l.turn
}

func (l roleLock) RUnlock() { <-l.slots }
