#!/bin/sh
# secrets.sh redis|nats|rabbitmq: make the passwords and keys that compose.yaml mounts,
# in secrets/, and say in .env which files make the deployment. What is there is left as
# it is, so it may be run again, with another broker too.
set -eu
cd "$(dirname "$0")"
umask 077

broker=${1:-}
case $broker in
  redis | nats | rabbitmq) ;;
  *)
    echo "usage: $0 redis|nats|rabbitmq" >&2
    exit 2
    ;;
esac

random() { # random BYTES: so many of the system's, as hexadecimal digits
  od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

make() { # make NAME MODE: a file of what is read, unless there is one
  if [ -e "secrets/$1" ]; then
    cat >/dev/null
  else
    cat >"secrets/$1.new"
    chmod "$2" "secrets/$1.new"
    mv "secrets/$1.new" "secrets/$1"
  fi
}

# Nobody but their owner gets into the directory. A file in it is mounted with the owner
# and mode that it has here: authws demands that others cannot read it, and the other
# images read theirs as users of their own, which a file of ours must let in.
mkdir -p secrets
random 48 | make secret_keys 0400
random 24 | make database_password 0444
random 24 | make broker_password 0400
password=$(cat secrets/database_password)
echo "postgresql://authws:$password@database/authws" | make database_url 0400

password=$(cat secrets/broker_password)
rm -f secrets/broker_url
case $broker in
  redis)
    echo "requirepass $password" | make redis.conf 0444
    echo "redis://:$password@redis" | make broker_url 0400
    ;;
  nats)
    echo "authorization { user: authws, password: \"$password\" }" | make nats.conf 0444
    echo "nats://authws:$password@nats" | make broker_url 0400
    ;;
  rabbitmq)
    printf 'default_user = authws\ndefault_pass = %s\n' "$password" |
      make rabbitmq.conf 0444
    echo "amqp://authws:$password@rabbitmq" | make broker_url 0400
    ;;
esac

# The service runs as whoever made its secrets, but never as root.
user=$(id -u):$(id -g)
if [ "$(id -u)" = 0 ]; then
  user=10001:10001
  chown "$user" secrets/secret_keys secrets/database_url secrets/broker_url
fi
cat >.env <<END
COMPOSE_FILE=compose.yaml:compose.$broker.yaml
RUN_AS=$user
END

for file in fullchain.pem privkey.pem; do
  [ -e "secrets/$file" ] || echo "still missing: secrets/$file, for nginx" >&2
done
